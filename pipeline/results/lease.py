"""Keeps a second search out of an output for as long as the first one lives.

In a local folder that is a lock of the operating system's, which ends with the process. In a
bucket it is an object that says who is at work and is written anew every few seconds; one that has
stopped changing belongs to a process that is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

from adu import storage
from adu.errors import UserError

LOCK = ".lock"

HEARTBEAT_S = 5.0
# Of silence, after which a holder counts as gone.
STALE_S = 30.0
POLL_S = 1.0


class LeaseLostError(Exception):
    """Another search has taken the output over, or it cannot be reached any more."""


class FolderLease:
    """A local folder, held until this process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream: IO[str] | None = None

    def take(self) -> None:
        """Takes the folder.

        Raises:
            UserError: If another search is at work in it.
        """
        # Ends with the process, however that ends: children do not inherit it.
        stream = (self._folder / LOCK).open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise UserError(f"output {self._folder}: another search is at work in it") from None
        self._stream = stream

    def release(self) -> None:
        """Lets the next one in."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class BucketLease:
    """A folder in a bucket, held as long as `beat` is called every few seconds.

    Whether another holder lives is seen from its object changing, so clocks need not agree.

    Args:
        url: The folder.
        stale_s: Silence after which another holder counts as gone.
    """

    def __init__(self, url: str, stale_s: float = STALE_S) -> None:
        self._url = url
        self._file = storage.join(url, LOCK)
        self._stale_s = stale_s
        self._me = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), **_process()}
        self._written: bytes | None = None
        self._beats = 0
        self._beat_at = 0.0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Takes the folder; waits for as long as it takes to see that a holder is gone.

        Raises:
            UserError: If another search is at work in it, or it cannot be written.
        """
        seen = self._read()
        if seen is not None:
            seen = self._silent(seen)
        self._written = seen
        if not self._write():
            raise UserError(f"output {self._url}: another search has just started in it")

    def beat(self) -> None:
        """Says that this process lives.

        Raises:
            LeaseLostError: If another search has taken the folder over.
            UserError: If the store cannot be asked.
        """
        with self._lock:
            if not self._write():
                raise LeaseLostError(
                    f"output {self._url}: taken over by another search ({_who(self._read())})"
                )

    def check(self) -> None:
        """Sees whether the folder is still held: to be called before something is written.

        Raises:
            LeaseLostError: As `beat`.
            UserError: As `beat`.
        """
        if time.monotonic() - self._beat_at > self._stale_s / 2:
            self.beat()

    def release(self) -> None:
        """Lets the next one in at once."""
        with self._lock:
            if self._written is not None and self._read() == self._written:
                storage.remove(self._file)
            self._written = None

    def _write(self) -> bool:
        self._beats += 1
        data = json.dumps({**self._me, "beats": self._beats}).encode()
        began = time.monotonic()
        if not storage.replace_bytes(self._file, data, self._written):
            return False
        self._written, self._beat_at = data, began
        return True

    def _read(self) -> bytes | None:
        return storage.read_bytes(self._file) if storage.exists(self._file) else None

    def _silent(self, seen: bytes) -> bytes | None:
        """Waits until a holder has been silent for long enough; gives what it has left.

        Raises:
            UserError: If it lives.
        """
        if _is_dead(json.loads(seen)):
            return seen
        deadline = time.monotonic() + self._stale_s
        while time.monotonic() < deadline:
            time.sleep(min(POLL_S, self._stale_s / 10))
            now = self._read()
            if now is None:
                return None
            if now != seen:
                raise UserError(
                    f"output {self._url}: another search is at work in it ({_who(now)})"
                )
        return seen


def _who(data: bytes | None) -> str:
    if data is None:
        return "nobody any more"
    holder = json.loads(data)
    return f"process {holder['pid']} on {holder['host']}"


def _process() -> dict[str, Any]:
    """This process, and the machine and name space in which its number means something."""
    pid = os.getpid()
    return {"pid": pid, "place": _place(), "began": _began(pid)}


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty if there is none or no telling."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine that has ended: no need to wait for it."""
    here = _place()
    return here != "" and holder["place"] == here and _began(holder["pid"]) != holder["began"]
