"""Starts servers in sessions of their own, and ends exactly those.

A server is known by its process id and the moment it started, so that a process that has the
same id later is never taken for it. All that it starts stays in its session, even what leaves its
process group (Ray's workers) or outlives its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1
# What has not ended so long after it was killed waits in the kernel, for a disk that is gone.
KILL_TIMEOUT_S = 30.0


class StopError(Exception):
    """Processes that cannot be ended."""


@dataclass(frozen=True)
class Process:
    """A process, for good.

    Attributes:
        pid: Its id, and that of its session.
        start_ticks: When it started, in the kernel's clock ticks since the machine did.
        boot_id: Which start of the machine that was.
    """

    pid: int
    start_ticks: int
    boot_id: str

    def is_alive(self) -> bool:
        """Whether it runs: itself, not another one with its id."""
        stat = _stat(self.pid)
        return (
            self.boot_id == _boot_id()
            and stat is not None
            and stat.start_ticks == self.start_ticks
            and stat.state != "Z"
        )

    def session(self) -> list[int]:
        """All that lives in its session, itself included, even if it has ended before them."""
        if self.boot_id != _boot_id():
            return []
        leader = _stat(self.pid)
        # The kernel gives an id to nobody else while a session has its number.
        if leader is not None and leader.start_ticks != self.start_ticks:
            return []
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        stats = {pid: _stat(pid) for pid in pids}
        return [
            pid
            for pid, stat in stats.items()
            if stat is not None and stat.session == self.pid and stat.state != "Z"
        ]


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Starts a server that outlives this process, with its output in a log."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stat = _stat(child.pid)
    assert stat is not None
    return Process(child.pid, stat.start_ticks, _boot_id())


def stop(processes: Iterable[tuple[Process, int]], patience_s: float) -> None:
    """Ends servers and all that they started.

    Args:
        processes: Each server, and the signal that asks it to end.
        patience_s: After which whatever is left is killed.

    Raises:
        StopError: If something cannot be killed.
    """
    pairs = list(processes)
    for process, number in pairs:
        if process.is_alive():
            _signal(process.pid, number)
    deadline = time.monotonic() + patience_s
    while any(process.is_alive() for process, _ in pairs) and time.monotonic() < deadline:
        _reap()
        time.sleep(POLL_S)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while left := [pid for process, _ in pairs for pid in process.session()]:
        if time.monotonic() > deadline:
            raise StopError(f"processes {', '.join(map(str, left))} cannot be killed")
        for pid in left:
            _signal(pid, signal.SIGKILL)
        _reap()
        time.sleep(POLL_S)


@dataclass(frozen=True)
class _Stat:
    """What ``/proc/PID/stat`` says of a process."""

    state: str
    session: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name before them may hold anything, parentheses too.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[3]), int(fields[19]))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> None:
    """Takes leave of children that have ended; there are some if this process started them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
