"""A search's output folder: one search in each, told apart by its configuration."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adu.errors import UserError

MARKER = "search.json"


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
        return self.folder / "optuna.journal"

    @property
    def ray_log(self) -> Path:
        """Where Ray's own output goes."""
        return self.folder / "ray.log"

    def study_file(self, study: str) -> Path:
        """The record of a finished study."""
        return self.folder / "studies" / f"{study}.json"

    def study_pictures(self, study: str) -> Path:
        """Where the pictures of a study go."""
        return self.folder / "studies" / study

    def discard(self) -> None:
        """Removes the folder if this process created it: nothing came of the search."""
        if self.created:
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
            return Output(folder, created=False)
        if resume:
            raise UserError(f"output {folder}: has no search to resume")
        if folder.is_dir() and any(folder.iterdir()):
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
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    # Fails if another search has just done the same.
    with (folder / MARKER).open("x", encoding="utf-8") as file:
        json.dump(identity, file, indent=2)
    return Output(folder, created)
