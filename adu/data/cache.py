"""Decoded images that all processes of a job on a machine share: read once, mapped by everybody.

A cache is a folder in shared memory (or, where that has no room, the folder for temporary files)
that belongs to a job. Whoever first wants some images writes them there while the others wait for
the lock; then all of them map the same file. Locks end with the process that holds them, however
it ends: the last process of a job removes the folder, and what a job has left that was killed is
removed by the next one on the machine.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from adu.data.pixels import Pixels, map_pixels

SHARED_MEMORY = Path("/dev/shm")

# Share of what is free that decoded images may take: Ray and the workers need memory as well.
FREE_SHARE = 0.5


class ImageCache:
    """The decoded images of a job on this machine.

    Args:
        job: What only the processes of this job and machine share, such as a job's id.
        roots: Where to keep them, the first place with enough room; by default shared memory,
            then the folder for temporary files.
    """

    def __init__(self, job: str, roots: list[Path] | None = None) -> None:
        name = hashlib.sha256(job.encode()).hexdigest()[:16]
        owner = f"adu-images-{os.getuid()}"
        places = roots or [SHARED_MEMORY, Path(tempfile.gettempdir())]
        self._homes: list[_JobFolder] = []
        for place in places:
            # Not every machine has shared memory, or lets everybody write there.
            with suppress(OSError):
                root = place / owner
                root.mkdir(mode=0o700, exist_ok=True)
                _remove_left_behind(root)
                self._homes.append(_JobFolder(root, name))

    def get(
        self, key: str, n_bytes: int, write: Callable[[Path], None], on_disk: bool = False
    ) -> Pixels | None:
        """Maps images, which are written first if no process has done so.

        Args:
            key: Tells them from all others.
            n_bytes: How large they are, about.
            write: Writes them to a file with `adu.data.pixels.write_pixels`.
            on_disk: Whether they are too many for memory: only the last place is tried.

        Returns:
            The images; None if there is no room for them.
        """
        if not self._homes:
            return None
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        with _locked(self._homes[0].folder / f"{name}.lock", fcntl.LOCK_EX):
            for home in self._homes:
                pixels = map_pixels(home.folder / name)
                if pixels is not None:
                    return pixels
            for home in self._homes[-1:] if on_disk else self._homes:
                if n_bytes <= FREE_SHARE * shutil.disk_usage(home.folder).free:
                    pixels = _written(home.folder / name, write)
                    if pixels is not None:
                        return pixels
        return None

    def close(self) -> None:
        """Leaves the cache; the last to leave removes it. What is mapped stays readable."""
        for home in self._homes:
            home.leave()
        self._homes = []


def _written(file: Path, write: Callable[[Path], None]) -> Pixels | None:
    """Writes images and maps them; None if there was less room than the disk said."""
    try:
        write(file)
    except OSError as error:
        # A container's limit, say, or a quota: the disk as a whole may have room.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        file.with_name(f"{file.name}.part").unlink(missing_ok=True)
        return None
    return map_pixels(file)


class _JobFolder:
    """A job's folder, held by this process.

    Its lock file lies beside it and is held shared by every process that uses it.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        self._lock_file = root / f"{name}.lock"
        self._lock = self._join()
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def leave(self) -> None:
        """Lets go of it, and removes it if nobody else holds it."""
        self._lock.close()
        _remove_unused(self._lock_file)

    def _join(self) -> IO[str]:
        while True:
            lock = self._lock_file.open("a")
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, self._lock_file):
                return lock
            lock.close()


def _remove_left_behind(root: Path) -> None:
    for lock_file in root.glob("*.lock"):
        _remove_unused(lock_file)


def _remove_unused(lock_file: Path) -> None:
    """Removes a job's folder and lock file unless a process holds them."""
    with suppress(FileNotFoundError), lock_file.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not _is_at(lock, lock_file):
            return
        shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
        lock_file.unlink(missing_ok=True)


def _is_at(lock: IO[str], file: Path) -> bool:
    """Whether a lock's file is still there: who removes a folder removes the lock with it."""
    try:
        return os.fstat(lock.fileno()).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def _locked(file: Path, how: int) -> Iterator[None]:
    with file.open("a") as lock:
        fcntl.flock(lock, how)
        yield
