"""A disk of its own, of a few megabytes, that can be filled up: a tmpfs."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A disk.

    Attributes:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leaves no room, but for the rest of the last page of each file."""
        with contextlib.suppress(OSError), self._filler.open("ab") as stream:
            while True:
                os.write(stream.fileno(), bytes(4096))

    def free(self) -> None:
        """Gives the room back."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, mib: int = 1) -> Iterator[SmallDisk]:
    """Mounts a disk, or skips the test where that may not be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
