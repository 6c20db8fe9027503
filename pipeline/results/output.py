"""A search's output: one search in each, told apart by its configuration.

It is a local folder or the URL of one in an object store. Everything in it is written whole, a
file at a time, but for what grows in place: Optuna's journal and Ray's log. With a URL these are
written on the local disk, and copied. The copy of the journal is made before anything is built on
it (see `Output.commit`), so that a process on another machine can go on from the URL alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adu import storage
from adu.errors import UserError
from pipeline.names import file_name
from pipeline.results.copies import JOURNAL, RAY_LOG, SEARCH_LOG, Copies
from pipeline.results.lease import LOCK, BucketLease, FolderLease

MARKER = "search.json"
STUDIES = "studies"
FINALS = "finals"
UNFINISHED = "unfinished"

# Parts of a configuration in which a name more is another search, not one of a later version.
WHOLE = ("space", "overrides")

# Of those between a search and its resumption.
SHOWN_DIFFERENCES = 5

# Leases of the outputs that this process holds.
_held: dict[str, FolderLease | BucketLease] = {}


@dataclass(frozen=True)
class Output:
    """Where a search keeps what it finds.

    Attributes:
        url: The output: an absolute local path or a URL.
        search_id: A UUID, which no other search has, wherever it lies.
        created: Whether this process has begun the search in it.
        is_new: Whether there was not even a folder before.
        work: Local folder of what is written in place: the output itself unless that is a URL.
    """

    url: str
    search_id: str
    created: bool
    is_new: bool
    work: Path
    _copies: Copies | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self._copies is None

    @property
    def journal(self) -> Path:
        """Optuna's storage."""
        return self.work / JOURNAL

    @property
    def ray_log(self) -> Path:
        """Where Ray's own output goes."""
        return self.work / RAY_LOG

    @property
    def search_log(self) -> Path:
        """What happened in the search, a line each."""
        return self.work / SEARCH_LOG

    @property
    def summary_file(self) -> str:
        """All figures of the search."""
        return storage.join(self.url, "summary.json")

    def study_file(self, study: str) -> str:
        """The record of a finished study."""
        return storage.join(self.url, STUDIES, f"{file_name(study)}.json")

    def study_pictures(self, study: str) -> str:
        """Where the pictures of a study go."""
        return storage.join(self.url, STUDIES, file_name(study))

    def trials(self, study: str) -> str:
        """Where the last epochs of a study's trials at work are kept."""
        return storage.join(self.url, UNFINISHED, file_name(study))

    def finals(self, study: str) -> str:
        """Where a study's final runs leave their outcomes."""
        return storage.join(self.url, STUDIES, file_name(study), FINALS)

    def relative(self, place: str) -> str:
        """A place in the output, as it is wherever the output is moved to."""
        return place.removeprefix(f"{self.url.rstrip('/')}/")

    def forget_unfinished(self, study: str) -> None:
        """Removes what was kept of the trials of a study that is finished now."""
        storage.remove(self.trials(study), recursive=True)
        if self.is_local:
            # That of another study may still be in there.
            with contextlib.suppress(OSError):
                (self.work / UNFINISHED).rmdir()

    def commit(self) -> None:
        """Returns once what the journal holds would survive the loss of this machine.

        May be called from several threads.

        Raises:
            OutputLostError: If it cannot be made so.
        """
        if self._copies is not None:
            self._copies.commit()

    def check(self) -> None:
        """Sees whether the output is still this search's.

        Raises:
            OutputLostError: If another one has taken it over.
        """
        if self._copies is not None:
            self._copies.check()

    def close(self) -> None:
        """Copies what is left and lets the next search in."""
        if self._copies is not None:
            try:
                self._copies.close()
            except UserError as error:
                # What was found is there; the last lines of Ray's log may not be.
                print(f"output {error}", file=sys.stderr)
        if lease := _held.pop(self.url, None):
            lease.release()

    def discard(self) -> None:
        """Removes what this process has put there, if it began the search: nothing came of it."""
        if not self.created:
            return
        if self._copies is not None:
            self._copies.stop()
        _held.pop(self.url, None)
        # It was empty before.
        for name in storage.names_in(self.url):
            storage.remove(storage.join(self.url, name), recursive=True)
        if self.is_new:
            storage.remove(self.url, recursive=True)


def open_output(
    url: str | Path, identity: Mapping[str, Any], *, resume: bool, or_start: bool = False
) -> Output:
    """Creates an output, or opens that of a search to resume.

    Args:
        url: A local folder or a URL.
        identity: What makes this search this search, as JSON values.
        resume: Whether to go on with the search that is in there.
        or_start: Whether to start one if there is none to resume.

    Raises:
        UserError: If it cannot be written, holds anything else, or there is no search in it to
            resume or one with another identity.
    """
    place = str(url)
    marker = storage.join(place, MARKER)
    _check_inside_bucket(place)
    try:
        if storage.exists(marker):
            if not resume:
                raise UserError(
                    f"output {place}: holds a search already (--resume goes on with it; or give "
                    "another --output)"
                )
            # Before anything is waited for.
            known = _read_marker(place)
            _check_same(place, known, _as_json(identity))
            return _hold(place, known["id"], created=False)
        if resume and not or_start:
            raise UserError(
                f"output {place}: has no search to resume (--resume-or-start begins one)"
            )
        # A start that was killed at once leaves a folder and a lock.
        if set(storage.names_in(place)) - {STUDIES, LOCK}:
            raise UserError(f"output {place}: holds other files (give an empty or a new --output)")
        return _create(place, identity)
    except OSError as error:
        raise UserError(f"output {place}: cannot be written: {error.strerror}") from error


def absolute_output(output: str) -> str:
    """An output as given by the user, independent of where this process stands."""
    if storage.is_local(output):
        return str(Path(output.removeprefix("file://")).absolute())
    return output.rstrip("/")


def parent_of(output: str) -> str:
    """The folder or URL that an output lies in."""
    return output.rsplit("/", 1)[0] or "/"


def named_output(output: str) -> str:
    """An output that is there, as a person names it: through links such as ``latest``."""
    place = absolute_output(output)
    return str(Path(place).resolve()) if storage.is_local(place) else place


@contextlib.contextmanager
def held(output: str) -> Iterator[None]:
    """Keeps every other command out of an output that is there.

    Raises:
        UserError: If another one is at work in it.
    """
    lease = FolderLease(Path(output)) if storage.is_local(output) else BucketLease(output)
    # Nobody is at work where nobody may write.
    with contextlib.suppress(PermissionError):
        lease.take()
    try:
        yield
    finally:
        lease.release()


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


def fetch_journal(output: str, folder: Path) -> Path:
    """The journal of an output as a local file; copied into a folder if the output is a URL.

    Raises:
        UserError: If the output has none.
    """
    journal = storage.join(output, JOURNAL)
    if not storage.exists(journal):
        raise UserError(f"output {output}: has no {JOURNAL}")
    if storage.is_local(output):
        return Path(output) / JOURNAL
    copy = folder / JOURNAL
    copy.write_bytes(storage.read_bytes(journal))
    return copy


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted paths, old values, new values.

    What only one of them has is not compared, since another version has written it, except where
    names are the user's (`WHOLE`).
    """
    if isinstance(old, dict) and isinstance(new, dict):
        whole = path.split(".")[0] in WHOLE
        names = old.keys() | new.keys() if whole else old.keys() & new.keys()
        return [
            found
            for name in sorted(names)
            for found in differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
        ]
    return [] if old == new else [(path, old, new)]


def _read_marker(place: str) -> dict[str, Any]:
    marker = storage.join(place, MARKER)
    try:
        known: dict[str, Any] = json.loads(storage.read_bytes(marker))
        if "id" not in known:
            raise UserError(f"output {place}: {MARKER} has no id: no search of this version's")
        return known
    except (ValueError, TypeError) as error:
        raise UserError(f"output {place}: {MARKER} is damaged: {error}") from error


def _check_same(place: str, old: Any, new: Any) -> None:
    found = differences(old, new)
    if not found:
        return
    shown = [
        f"{path} is {json.dumps(before)} there and {json.dumps(now)} now"
        for path, before, now in found[:SHOWN_DIFFERENCES]
    ]
    if len(found) > SHOWN_DIFFERENCES:
        shown.append(f"and {len(found) - SHOWN_DIFFERENCES} more")
    raise UserError(
        f"output {place}: holds another search: {'; '.join(shown)} "
        "(give a new --output, or the same configuration to --resume)"
    )


def _as_json(identity: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(identity))


def _check_inside_bucket(place: str) -> None:
    if not storage.is_local(place) and "/" not in storage.filesystem_for(place)[1].strip("/"):
        raise UserError(
            f"output {place}: is a whole bucket (name a folder in it: {place}/search-1)"
        )


def _create(place: str, identity: Mapping[str, Any]) -> Output:
    is_new = not storage.is_local(place) or not Path(place).exists()
    if storage.is_local(place):
        (Path(place) / STUDIES).mkdir(parents=True, exist_ok=True)
    search = str(uuid.uuid4())
    output = _hold(place, search, created=True, is_new=is_new)
    data = json.dumps({"id": output.search_id, **identity}, indent=2).encode()
    storage.write_bytes(storage.join(place, MARKER), data)
    return output


def _hold(place: str, search: str, created: bool, is_new: bool = False) -> Output:
    """Keeps every other command out for as long as this process lives.

    Raises:
        UserError: If another one is at work.
    """
    lease = _held.get(place)
    if lease is None:
        lease = FolderLease(Path(place)) if storage.is_local(place) else BucketLease(place)
        lease.take()
        _held[place] = lease
    if isinstance(lease, FolderLease):
        return Output(place, search, created, is_new, Path(place))
    copies = Copies(place, Path(tempfile.mkdtemp(prefix="adu-search-")), lease)
    copies.restore()
    copies.start()
    return Output(place, search, created, is_new, copies.work, copies)
