"""What is known of a stack that runs, in a file of its folder: settings and processes."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adu.errors import UserError
from infra.stack.processes import Process
from infra.stack.settings import Settings

FILE, LOCK = "state.json", ".lock"


@dataclass
class State:
    """A stack that was started.

    Attributes:
        settings: How.
        sockets: Short path of its folder ``ray``.
        processes: The servers by name, ended ones too.
    """

    settings: Settings
    sockets: Path
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def running(self) -> set[str]:
        """Names of the servers whose process is alive."""
        return {name for name, process in self.processes.items() if process.is_alive()}

    def save(self) -> None:
        """Writes the file: a start that is killed must not hide what it has started."""
        values: dict[str, Any] = {
            "settings": self.settings.as_json(),
            "sockets": str(self.sockets),
            "processes": {name: asdict(process) for name, process in self.processes.items()},
        }
        temporary = self.settings.folder / f".{FILE}"
        temporary.write_text(json.dumps(values, indent=2))
        temporary.replace(self.settings.folder / FILE)

    def forget(self) -> None:
        """Removes the file, once nothing runs."""
        shutil.rmtree(self.sockets.parent, ignore_errors=True)
        (self.settings.folder / FILE).unlink(missing_ok=True)


def new_state(settings: Settings) -> State:
    """The state of a stack of which nothing runs yet."""
    # A socket's path has 107 characters at most, of which Ray takes 79: TMPDIR may be too long.
    place = Path(tempfile.mkdtemp(prefix="adu-stack-", dir="/tmp"))
    sockets = place / "ray"
    sockets.symlink_to(settings.folder / "ray")
    return State(settings, sockets)


def load_state(folder: Path) -> State | None:
    """What a folder's file says; None if no stack was started there.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        values = json.loads((folder / FILE).read_text())
        processes = {name: Process(**process) for name, process in values["processes"].items()}
        settings = Settings.from_json(folder, values["settings"])
        return State(settings, Path(values["sockets"]), processes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE}: cannot be read: {error}") from error


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other commands from starting or stopping the same stack meanwhile.

    Raises:
        UserError: If one is at it.
    """
    with (folder / LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another command starts or stops the stack") from None
        yield
