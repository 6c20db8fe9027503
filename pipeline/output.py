"""A search's output folder: one search in each, told apart by its configuration."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adu import storage
from adu.errors import UserError

MARKER = "search.json"
LOCK = ".lock"
JOURNAL = "optuna.journal"
STUDIES = "studies"


# Folders that this process holds.
_held: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class Output:
    """Where a search keeps what it finds.

    Attributes:
        folder: The output folder.
        created: Whether this process created it.
    """

    folder: Path
    created: bool

    @property
    def journal(self) -> Path:
        """Optuna's storage."""
        return self.folder / JOURNAL

    @property
    def ray_log(self) -> Path:
        """Where Ray's own output goes."""
        return self.folder / "ray.log"

    def study_file(self, study: str) -> Path:
        """The record of a finished study."""
        return self.folder / STUDIES / f"{study}.json"

    def study_pictures(self, study: str) -> Path:
        """Where the pictures of a study go."""
        return self.folder / STUDIES / study

    def savepoints(self, study: str) -> Path:
        """Where the last epochs of a study's trials at work are kept."""
        return self.folder / "unfinished" / study / "trials"

    def finals(self, study: str) -> Path:
        """Where a study's final runs are kept until it is finished."""
        return self.folder / "unfinished" / study / "finals"

    def forget_unfinished(self, study: str) -> None:
        """Removes what was kept of a study that is finished now."""
        shutil.rmtree(self.folder / "unfinished" / study, ignore_errors=True)

    def hold(self) -> None:
        """Keeps every other command out of the folder for as long as this process lives.

        Raises:
            UserError: If another one is at work in it.
        """
        if self.folder in _held:
            return
        # Ends with the process, however that ends: children do not inherit it.
        stream = (self.folder / LOCK).open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise UserError(f"output {self.folder}: another search is at work in it") from None
        _held[self.folder] = stream

    def discard(self) -> None:
        """Removes the folder if this process created it: nothing came of the search."""
        if self.created:
            if stream := _held.pop(self.folder, None):
                stream.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def open_output(folder: Path, identity: Mapping[str, Any], *, resume: bool) -> Output:
    """Creates an output folder, or opens that of a search to resume.

    Args:
        folder: The folder.
        identity: What makes this search this search, as JSON values.
        resume: Whether to go on with the search that is in there.

    Raises:
        UserError: If the folder cannot be written, holds anything else, or there is no search in
            it to resume or one with another identity.
    """
    marker = folder / MARKER
    try:
        if marker.exists():
            if not resume:
                raise UserError(
                    f"output {folder}: holds a search already (--resume goes on with it; or give "
                    "another --output)"
                )
            _check_same(folder, json.loads(marker.read_text()), json.loads(json.dumps(identity)))
            output = Output(folder, created=False)
            output.hold()
            return output
        if resume:
            raise UserError(f"output {folder}: has no search to resume")
        # A start that was killed at once leaves a folder and a lock.
        if folder.is_dir() and {file.name for file in folder.iterdir()} - {STUDIES, LOCK}:
            raise UserError(f"output {folder}: holds other files (give an empty or a new --output)")
        return _create(folder, identity)
    except OSError as error:
        raise UserError(f"output {folder}: cannot be written: {error.strerror}") from error


def unique_name(folder: Path) -> str:
    """A name for what lies in a folder that no other folder's has, such as ``out-1a2b3c4d``."""
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{folder.name}-{place}"


def point_latest(folder: Path) -> None:
    """Makes ``latest`` beside the folder a link to it."""
    link = folder.parent / "latest"
    temporary = folder.parent / f".latest-{os.getpid()}"
    try:
        temporary.symlink_to(folder.name)
        temporary.replace(link)
    except OSError:
        # A convenience; not every file system has links.
        temporary.unlink(missing_ok=True)


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Finds where two JSON values differ: dotted path, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{path}.{name}" if path else name
            found = first_difference(old.get(name), new.get(name), inner)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


def _check_same(folder: Path, old: Any, new: Any) -> None:
    difference = first_difference(old, new)
    if difference:
        path, before, now = difference
        raise UserError(
            f"output {folder}: holds another search: {path} is {json.dumps(before)} there and "
            f"{json.dumps(now)} now (give a new --output, or the same configuration to --resume)"
        )


def _create(folder: Path, identity: Mapping[str, Any]) -> Output:
    created = not folder.exists()
    (folder / STUDIES).mkdir(parents=True, exist_ok=True)
    output = Output(folder, created)
    # One of two that started at the same time.
    output.hold()
    storage.write_bytes(str(folder / MARKER), json.dumps(identity, indent=2).encode())
    return output
