"""Who has which executor: leases, handed out in the driver to whoever has waited longest.

Final runs let trials pass: they are all known at once, whereas a trial is proposed when the one
before has ended, and a study whose trials wait keeps the whole search waiting in the end.

Executors come (a node joins, the cluster grows) and go (a node dies) while a search runs; who wants
one asks here each time and need not know. Knows nothing of Ray: see `pipeline.executors.pool`.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.executors.mailbox import MAX_RESTARTS, Command, Event, MailboxLink

# Whoever has not asked for so long does not want an executor any more.
PATIENCE_S = 5.0

# How long a lease is waited for before it is looked again whether there is any point in it.
TURN_S = 1.0

State = Literal["starting", "ready", "gone"]


class Lease:
    """One caller's hold of one executor; None is that of a search that is interrupted."""

    def __init__(self, executors: Executors, slot: _Slot | None) -> None:
        self._executors = executors
        self._slot = slot
        self._command: Command | None = None
        self._n_lost = 0
        self._released = slot is None
        self.taken_at = time.time()
        # When the executor was left by the one before, and who that was.
        self.free_since = slot.free_since if slot else self.taken_at
        self.previous = slot.previous if slot else ""

    @property
    def index(self) -> int:
        """The executor's number; -1 for none."""
        return -1 if self._slot is None else self._slot.index

    def start(self, command: Command) -> None:
        """Sets a run going; one that is still in flight is stopped."""
        self._command = command
        if self._slot is not None:
            self._slot.mailbox.ask("post", command)

    def advance(self) -> Event:
        """Lets the run go on and waits for what happens next.

        A run whose executor is lost goes on with another one, unless that happens again and again
        without an epoch in between: the run may be what kills them.
        """
        assert self._command is not None
        while self._slot is not None:
            event: Event = self._slot.mailbox.ask("advance", self._command.run_id)
            if event.kind != "lost":
                self._n_lost = 0
                return event
            self._n_lost += 1
            if self._n_lost > MAX_RESTARTS:
                return Event("failed", error=f"its executor was lost {self._n_lost} times")
            self._move(event.command or self._command)
        return Event("interrupted")

    def release(self, who: str = "") -> None:
        """Gives the executor back; a run that is still in flight is stopped.

        Args:
            who: Is told to the next one.
        """
        if self._slot is None or self._released:
            return
        self._released = True
        if self._command is not None:
            self._slot.mailbox.send("withdraw", self._command.run_id)
        self._executors.free(self._slot.index, who)

    def _move(self, command: Command) -> None:
        self._executors.free(self.index, "")
        other = self._executors.lease()
        self._slot, self._released = other._slot, other._released
        self.start(command)


@dataclass
class _Waiting:
    asked_at: float
    yields: bool


@dataclass
class _Slot:
    index: int
    mailbox: MailboxLink
    state: State = "starting"
    leased: bool = False
    free_since: float = 0.0
    previous: str = ""


class Executors:
    """The executors of a pool, as those see them who want one. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: dict[int, _Slot] = {}
        self._planned = 0
        # Who waits, in the order of their coming.
        self._queue: dict[str, _Waiting] = {}
        self._interrupted = False

    def __len__(self) -> int:
        """How many there are, those included that are about to start."""
        return max(self._planned, 1)

    @property
    def n_ready(self) -> int:
        """How many have workers."""
        with self._changed:
            return sum(slot.state == "ready" for slot in self._slots.values())

    @property
    def interrupted(self) -> bool:
        """Whether no run is to begin any more."""
        return self._interrupted

    # For those who want an executor.

    def lease(self, yields: bool = False) -> Lease:
        """Waits for a free executor and takes it.

        Args:
            yields: Lets those pass who do not yield, also the ones that come later.

        Returns:
            A lease; once the search is interrupted, one on which every run ends at once.
        """
        ticket = uuid.uuid4().hex
        while not self._interrupted:
            lease = self.try_lease(ticket, TURN_S, yields)
            if lease is not None:
                return lease
        return Lease(self, None)

    def try_lease(self, who: str, timeout_s: float = 0.0, yields: bool = False) -> Lease | None:
        """Takes an executor if one is free and nobody has waited for it longer.

        Args:
            who: Unique name of the caller, which keeps its place as long as it asks again soon.
            timeout_s: How long to wait for one.
            yields: Lets those pass who do not yield, also the ones that come later.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._interrupted:
                slot = self._turn_of(who, yields)
                if slot is not None:
                    del self._queue[who]
                    slot.leased = True
                    self._changed.notify_all()
                    return Lease(self, slot)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
        return None

    def give_up(self, who: str) -> None:
        """Has a caller wait no more."""
        with self._changed:
            self._queue.pop(who, None)
            self._changed.notify_all()

    def free(self, index: int, who: str) -> None:
        """Takes an executor back."""
        with self._changed:
            slot = self._slots[index]
            slot.leased, slot.free_since, slot.previous = False, time.time(), who
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Has nobody wait any more."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    # For the pool.

    def add(self, mailbox: MailboxLink) -> None:
        """There is another executor, about to start."""
        with self._changed:
            self._slots[mailbox.index] = _Slot(mailbox.index, mailbox)
            self._planned = max(self._planned, len(self._slots))

    def plan(self, n_executors: int) -> None:
        """Says how many there are going to be, as far as one can see."""
        self._planned = n_executors

    def turn(self, index: int, state: State) -> None:
        """An executor has got its workers, or lost them."""
        with self._changed:
            slot = self._slots[index]
            if state == "ready" and slot.state != "ready":
                slot.free_since = time.time()
            slot.state = state
            self._changed.notify_all()

    # Helpers.

    def _turn_of(self, who: str, yields: bool) -> _Slot | None:
        """A free executor, if it is this caller's turn."""
        now = time.monotonic()
        self._queue[who] = _Waiting(now, yields)
        for name, waiting in list(self._queue.items()):
            if now - waiting.asked_at > PATIENCE_S:
                del self._queue[name]
        free = [slot for slot in self._slots.values() if slot.state == "ready" and not slot.leased]
        place = sorted(self._queue, key=lambda name: self._queue[name].yields).index(who)
        if place >= len(free):
            return None
        # Rather the one that it has had before, where its overhead can be told.
        return min(free, key=lambda slot: (slot.previous != who, slot.index))


class Share:
    """What one of several studies side by side may use of a pool.

    Args:
        executors: The pool's.
        name: The study's.
        index: Number of the share.
        n_shares: Gives how many there are.
    """

    def __init__(
        self,
        executors: Executors,
        name: str,
        index: int = 0,
        n_shares: Callable[[], int] = lambda: 1,
    ) -> None:
        self._executors = executors
        self._name = name
        self._index = index
        self._n_shares = n_shares

    def __len__(self) -> int:
        """How many executors it may have at a time: shares differ by one at most."""
        each, more = divmod(len(self._executors), self._n_shares())
        return max(each + (self._index < more), 1)

    @property
    def interrupted(self) -> bool:
        """Whether no run is to begin any more."""
        return self._executors.interrupted

    def try_lease(self, timeout_s: float = 0.0) -> Lease | None:
        """See `Executors.try_lease`."""
        return self._executors.try_lease(self._name, timeout_s)

    def give_up(self) -> None:
        """Says that no executor is wanted now."""
        self._executors.give_up(self._name)


class Turns:
    """Which studies run side by side: as many as there are executors, in their order.

    Args:
        executors: The pool's.
        n_studies: How many the search has.
        at_once: How many at once at most; unset: as many as there are executors.
        stop: Has the waiting ones wait no more.
    """

    def __init__(
        self, executors: Executors, n_studies: int, at_once: int | None, stop: threading.Event
    ) -> None:
        self._executors = executors
        self._n_studies = n_studies
        self._at_once = at_once
        self._stop = stop
        self._changed = threading.Condition()
        self._n_begun = 0
        self._taken: set[int] = set()
        # Never fewer: what a study proposes is not to depend on when the others end.
        self._n_shares = 1

    @property
    def n_shares(self) -> int:
        """How many studies the executors are shared out to."""
        at_once = min(self._at_once or len(self._executors), self._n_studies)
        self._n_shares = max(self._n_shares, at_once)
        return self._n_shares

    @contextlib.contextmanager
    def take(self, number: int, study: str) -> Iterator[Share]:
        """Waits for a study's turn, and gives it a share until its end.

        Args:
            number: Its place among the studies.
            study: Its name.
        """
        with self._changed:
            while not self._stop.is_set() and not self._is_next(number):
                # Executors that come make room without a word.
                self._changed.wait(TURN_S)
            index = min(set(range(len(self._taken) + 1)) - self._taken)
            self._taken.add(index)
            self._n_begun += 1
            self._changed.notify_all()
        try:
            yield Share(self._executors, study, index, lambda: self.n_shares)
        finally:
            with self._changed:
                self._taken.remove(index)
                self._changed.notify_all()

    def _is_next(self, number: int) -> bool:
        at_once = min(self._at_once or len(self._executors), self._n_studies)
        return number == self._n_begun and len(self._taken) < at_once
