"""What an executor and its workers say to each other.

The executor posts a `Run` and asks for one `Event` after another. Rank 0 of the workers takes the
run, reports each epoch and waits until it is told to go on, so that a run that is stopped wastes
nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.executors.run import Event, Run

# How long ranks are waited for after one of them has raised (see `Mailbox.fail`).
FAILURE_WINDOW_S = 5.0


class Mailbox:
    """Thread-safe: in one process with its workers, or an actor between executor and workers.

    Args:
        n_workers: Workers of the executor.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._changed = threading.Condition()
        self._address: str | None = None
        self._group: str | None = None
        self._open = False
        self._closed = False
        self._end: Event | None = None
        # The run in flight has the last ticket; an earlier one is that of a run that was stopped.
        self._ticket = 0
        self._run: Run | None = None
        self._taken = False
        self._waits_for_decision = False
        self._events: deque[Event] = deque()
        self._failures: dict[int, Event] = {}

    # Called by the executor.

    def post(self, run: Run) -> None:
        """Sets the next run going; one that is still in flight is stopped."""
        with self._changed:
            self._ticket += 1
            self._run = run
            self._taken, self._waits_for_decision = False, False
            self._events.clear()
            self._failures.clear()
            self._changed.notify_all()

    def advance(self, timeout_s: float) -> Event | None:
        """Lets the run go on past the epoch that it reported last, and waits for the next event.

        Returns:
            The event; None if there is none in time.
        """
        with self._changed:
            if not self._events and self._waits_for_decision:
                self._waits_for_decision = False
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._events or self._end, timeout_s)
            return self._events.popleft() if self._events else self._end

    def end(self, event: Event) -> None:
        """The workers are gone, or cannot work: whatever is asked for next is this event."""
        with self._changed:
            self._end = self._end or event
            self._changed.notify_all()

    def workers(self) -> tuple[bool, str | None]:
        """Whether the session is open, and the placement group of the workers, once known."""
        return self._open, self._group

    def close(self) -> None:
        """Lets the workers go home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Called by the workers.

    def meet(self, address: str | None) -> str | None:
        """Rank 0 says where the ranks find each other; the others wait for it."""
        with self._changed:
            self._address = address or self._address
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._address or self._closed)
            return self._address

    def enter(self, group: str | None, is_open: bool) -> None:
        """Workers are there: before their session is open, and when it is."""
        with self._changed:
            self._group, self._open = group, is_open
            self._changed.notify_all()

    def take(self) -> tuple[int, Run] | None:
        """Waits for a run and gives it with its ticket; None to leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._run and not self._taken))
            if self._closed or self._run is None:
                return None
            self._taken = True
            return self._ticket, self._run

    def report(self, ticket: int, event: Event) -> bool:
        """Passes an epoch on and waits for what is made of it; returns whether the run goes on."""
        with self._changed:
            if not self._runs(ticket):
                return False
            self._events.append(event)
            self._waits_for_decision = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._runs(ticket) or not self._waits_for_decision)
            return self._runs(ticket)

    def finish(self, ticket: int, event: Event) -> None:
        """A run has come to its end."""
        with self._changed:
            if self._runs(ticket):
                self._run = None
                self._events.append(event)
                self._changed.notify_all()

    def fail(self, ticket: int, rank: int, event: Event) -> bool:
        """A rank has raised an exception.

        If all ranks have, they are still in step: the run has failed and the workers stay. If
        only some have, the others may be dead or wait for them for ever.

        Returns:
            Whether the workers stay.
        """
        with self._changed:
            if ticket != self._ticket:
                return True
            self._failures[rank] = event
            self._changed.notify_all()
            self._changed.wait_for(self._all_failed, FAILURE_WINDOW_S)
            if not self._all_failed():
                return False
        self.finish(ticket, self._failures[0])
        return True

    def _all_failed(self) -> bool:
        return len(self._failures) == self._n_workers

    def _runs(self, ticket: int) -> bool:
        return self._run is not None and ticket == self._ticket and not self._closed


@dataclass(frozen=True)
class Line:
    """How a mailbox is called, wherever it is.

    Attributes:
        mailbox: The `Mailbox`, or the handle of an actor that is one.
    """

    mailbox: Any

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the mailbox and waits for what it gives."""
        call: Callable[..., Any] = getattr(self.mailbox, method)
        if isinstance(self.mailbox, Mailbox):
            return call(*arguments)
        return ray.get(call.remote(*arguments))  # type: ignore[attr-defined]
