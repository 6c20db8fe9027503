"""A run's last epoch in a file, from which it goes on after everything was killed.

The file is a line of JSON, the reports of all its epochs, and behind it the training state.
Imports little: see `pipeline.mailbox`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Savepoint:
    """What is known of a run after an epoch.

    Attributes:
        epochs: The reports of its epochs, as plain values.
        state: All that is needed to go on.
    """

    epochs: Sequence[dict[str, Any]]
    state: bytes


def write_savepoint(file: Path, savepoint: Savepoint) -> None:
    """Writes a savepoint over the one before, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.write(json.dumps(list(savepoint.epochs)).encode() + b"\n" + savepoint.state)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def read_savepoint(file: Path) -> Savepoint | None:
    """Reads a savepoint; None if there is none."""
    try:
        with file.open("rb") as stream:
            return Savepoint(json.loads(stream.readline()), stream.read())
    except FileNotFoundError:
        return None
