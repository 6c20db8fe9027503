"""What grows in place in an output, when that is in a bucket: written here, and copied there."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from adu import storage
from adu.errors import UserError
from pipeline.patience import patiently
from pipeline.results.lease import HEARTBEAT_S, BucketLease, LeaseLostError

JOURNAL = "optuna.journal"
RAY_LOG = "ray.log"
SEARCH_LOG = "search.log"


class OutputLostError(Exception):
    """The output can no longer be written: another search has it, or the store is away."""


class Copies:
    """Keeps copies of what grows in a local folder, and the lease of where they lie.

    Args:
        url: Where the copies go.
        work: The local folder.
        lease: Of the URL.
    """

    def __init__(self, url: str, work: Path, lease: BucketLease) -> None:
        self.work = work
        self._url = url
        self._lease = lease
        self._copied: dict[str, int] = {}
        self._lock = threading.Lock()
        self._lost: OutputLostError | None = None
        self._stop = threading.Event()
        # Apart: a copy that takes long must not cost the lease.
        self._threads = [
            threading.Thread(target=self._keep, args=(call,), daemon=True, name="output")
            for call in (lease.beat, self._copy_all)
        ]

    def restore(self) -> None:
        """Fetches the journal, if there is one."""
        journal = storage.join(self._url, JOURNAL)
        if storage.exists(journal):
            data = storage.read_bytes(journal)
            (self.work / JOURNAL).write_bytes(data)
            self._copied[JOURNAL] = len(data)

    def start(self) -> None:
        """Begins to keep the lease, and copies once in a while."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """See `Output.check`."""
        if self._lost is not None:
            raise self._lost
        try:
            patiently(self._url, self._lease.check)
        except (LeaseLostError, UserError) as error:
            self._lost = OutputLostError(str(error))
            raise self._lost from error

    def commit(self) -> None:
        """Copies the journal; see `Output.commit`."""
        if self._lost is not None:
            raise self._lost
        try:
            patiently(self._url, self._commit)
        except (LeaseLostError, UserError) as error:
            # For good: what follows from a failure here must not get into the copies.
            self._lost = OutputLostError(str(error))
            raise self._lost from error

    def stop(self) -> None:
        """Copies no more."""
        self._end_threads()
        shutil.rmtree(self.work, ignore_errors=True)

    def close(self) -> None:
        """Copies what is left, then stops."""
        self._end_threads()
        if self._lost is None:
            self._copy_all()
        shutil.rmtree(self.work, ignore_errors=True)

    def _commit(self) -> None:
        self._lease.check()
        self._copy(JOURNAL)

    def _end_threads(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, call: Callable[[], None]) -> None:
        while not self._stop.wait(HEARTBEAT_S) and self._lost is None:
            try:
                call()
            except LeaseLostError as error:
                self._lost = OutputLostError(str(error))
            except UserError as error:
                # The store is away. Whoever needs it waits for it, see `commit`.
                print(f"output {error}", file=sys.stderr, flush=True)

    def _copy_all(self) -> None:
        for name in (JOURNAL, RAY_LOG, SEARCH_LOG):
            self._copy(name)

    def _copy(self, name: str) -> None:
        """Copies a file if it has grown; one copy serves all who waited for it."""
        file = self.work / name
        if not file.exists():
            return
        size = file.stat().st_size
        with self._lock:
            if self._copied.get(name, 0) >= size:
                return
            data = file.read_bytes()
            storage.write_bytes(storage.join(self._url, name), data)
            self._copied[name] = len(data)
