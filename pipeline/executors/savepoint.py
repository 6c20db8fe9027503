"""A run's last epoch in a file, from which it goes on after everything was killed.

The file is a line of JSON, the reports of all its epochs, and behind it the training state. It is
a local file or an object in a bucket.
Imports little: see `pipeline.executors.mailbox`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.patience import is_full, patiently


@dataclass(frozen=True)
class Savepoint:
    """What is known of a run after an epoch.

    Attributes:
        epochs: The reports of its epochs, as plain values.
        state: All that is needed to go on.
    """

    epochs: Sequence[dict[str, Any]]
    state: bytes


def write_savepoint(place: str, savepoint: Savepoint) -> None:
    """Writes a savepoint over the one before, whole or not at all.

    A disk that is full, or a bucket that cannot be reached, is told of and costs no more than an
    epoch: a run that is resumed goes on from the savepoint before.
    """
    data = json.dumps(list(savepoint.epochs)).encode() + b"\n" + savepoint.state
    if "://" in place:
        _write_object(place, data)
    else:
        _write_file(Path(place), data)


def read_savepoint(place: str) -> Savepoint | None:
    """Reads a savepoint; None if there is none."""
    data = _read_object(place) if "://" in place else _read_file(Path(place))
    if data is None:
        return None
    epochs, _, state = data.partition(b"\n")
    return Savepoint(json.loads(epochs), state)


def _write_file(file: Path, data: bytes) -> None:
    temporary = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        # Half of it would help to keep the disk full.
        temporary.unlink(missing_ok=True)
        if not is_full(error):
            raise
        print(f"savepoint {file}: {error.strerror}", file=sys.stderr)


def _read_file(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _write_object(url: str, data: bytes) -> None:
    # Takes a while to import, and most searches keep their output in a folder.
    from adu import storage
    from adu.errors import UserError

    try:
        storage.write_bytes(url, data)
    except UserError as error:
        print(f"savepoint {error}", file=sys.stderr)


def _read_object(url: str) -> bytes | None:
    from adu import storage

    return patiently(url, lambda: storage.read_bytes(url) if storage.exists(url) else None)
