"""What callers and the workers of an executor say to each other, and the actor that passes it on.

Kept free of torch, pandas and the like: every process that talks to an executor imports it.

A caller that holds an executor's lease (see `pipeline.executors.sharing`) posts a `Command` and
then asks for one `Event` after another. The workers' rank 0 takes the command, reports each epoch
and waits until it is told to go on, so that a run that is stopped wastes nothing. The mailbox
remembers the last epoch's state: workers that were restarted are given the command in flight again,
with that state, and the caller sees one run.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.executors.savepoint import Savepoint, read_savepoint, write_savepoint

# How often the workers of one command may be restarted before it counts as failed.
MAX_RESTARTS = 3

# How long ranks are waited for after one of them has raised (see `Mailbox.fail`).
FAILURE_WINDOW_S = 5.0

# Of the actor that holds a pool's mailboxes: each executor has up to four calls that wait in it.
MAX_CALLS = 100_000

Phase = Literal["starting", "ready", "broken", "closed"]


@dataclass(frozen=True)
class Command:
    """One run for an executor.

    Attributes:
        run_id: Unique name of the run.
        run: The run's configuration as plain values.
        kind: ``train`` trains; ``test`` trains, evaluates on the test split and returns the
            result; ``check`` only sees whether the configuration fits.
        state: Training state to go on from; None to start afresh.
        savepoint: File or URL where the last epoch is kept; if it is there already, the run goes
            on from it.
        epochs: The reports of the epochs that led to `state`.
    """

    run_id: str
    run: dict[str, Any]
    kind: Literal["train", "test", "check"] = "train"
    state: bytes | None = None
    savepoint: str | None = None
    epochs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Event:
    """What has become of a run.

    Attributes:
        kind: ``epoch`` is followed by more; after any other the run is over, here at least: one
            that was ``lost`` with its executor's node goes on elsewhere.
        epoch: The epoch's report as plain values (kind ``epoch``).
        before: The reports of the epochs before it, if the run has just gone on from a savepoint.
        result: What the run gave (kind ``done``).
        error: Why it failed, in one line (kind ``failed``).
        user_error: Whether that is a mistake of the user's.
        command: How to go on elsewhere (kind ``lost``).
    """

    kind: Literal["epoch", "done", "failed", "interrupted", "lost"]
    epoch: dict[str, Any] | None = None
    before: tuple[dict[str, Any], ...] = ()
    result: bytes | None = None
    error: str | None = None
    user_error: bool = False
    command: Command | None = None


@dataclass(frozen=True)
class Workers:
    """What a mailbox knows of its executor's workers.

    Attributes:
        version: Grows with every change.
        phase: What they are about.
        group: Number of the group that entered last.
        nodes: Ray's ids of the nodes that it is on.
        trouble: Why there are none (phase ``broken``).
    """

    version: int
    phase: Phase
    group: int
    nodes: tuple[str, ...]
    trouble: Event


class Mailboxes:
    """The mailboxes of a pool: one Ray actor for all, not a process for each.

    Args:
        n_workers: Workers of each executor.
    """

    def __init__(self, n_workers: int) -> None:
        self._mailboxes: defaultdict[int, Mailbox] = defaultdict(lambda: Mailbox(n_workers))

    async def call(self, index: int, method: str, *arguments: Any) -> Any:
        """Calls a method of a mailbox, which is there from its first call."""
        return await getattr(self._mailboxes[index], method)(*arguments)


@dataclass(frozen=True)
class MailboxLink:
    """A mailbox as seen from other processes.

    Attributes:
        actor: Handle of the `Mailboxes`.
        index: Number of the executor.
    """

    actor: Any
    index: int

    def send(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the mailbox without waiting; a reference to what it gives."""
        return self.actor.call.remote(self.index, method, *arguments)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the mailbox and waits for what it gives."""
        import ray

        return ray.get(self.send(method, *arguments))


class Mailbox:
    """An executor's front door; its methods are coroutines of one event loop.

    Between two awaits nothing else runs, so there are no locks; whoever waits does so in
    `_until` and is woken by every change.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._changed = asyncio.Condition()
        self._phase: Phase = "starting"
        self._trouble = Event("failed", error="")
        self._version = 0
        self._nodes: tuple[str, ...] = ()
        self._lost = False
        # The last command's run, whose events these are.
        self._run_id = ""
        # The command in flight, what is known of it, and whether workers have it.
        self._command: Command | None = None
        self._events: deque[Event] = deque()
        self._epochs: list[dict[str, Any]] = []
        self._restarts = 0
        self._taken = False
        self._waits_for_decision = False
        self._interrupted = False
        self._group = 0
        # What ranks have raised in a run.
        self._failures: dict[str, dict[int, Event]] = {}

    # Called by whoever starts executors.

    async def workers(self, seen: int) -> Workers:
        """Waits until there is news of the workers since a version."""
        await self._until(lambda: self._version > seen)
        return Workers(self._version, self._phase, self._group, self._nodes, self._trouble)

    async def break_down(self, failure: Event) -> None:
        """The workers cannot be started, or are gone for good."""
        self._trouble = failure
        self._turn("broken")
        await self._end_command(failure)

    async def lose(self, group: int) -> None:
        """A group's node is gone, and who knows when others start: its run goes on elsewhere."""
        if group != self._group or self._phase != "ready":
            return
        self._lost = True
        self._turn("starting")
        await self._end_command(Event("lost", command=self._resumable()))

    async def close(self) -> None:
        """Lets the workers go home."""
        self._turn("closed")
        await self._end_command(Event("interrupted"))

    async def interrupt(self) -> None:
        """Ends the command in flight and every later one at once, for its caller."""
        self._interrupted = True
        await self._end_command(Event("interrupted"))

    # Called by callers.

    async def withdraw(self, run_id: str) -> None:
        """Stops a run, if it is still in flight."""
        if self._runs(run_id):
            self._command = None
            await self._notify()

    async def post(self, command: Command) -> None:
        """Sets the next run going; one that is still in flight is stopped."""
        saved = await _saved(command)
        self._run_id, self._command = command.run_id, command
        self._events.clear()
        self._epochs = list(command.epochs)
        self._restarts = 0
        self._taken, self._waits_for_decision = False, False
        if saved is not None:
            self._go_on_from(saved)
        if self._phase == "broken":
            await self._end_command(self._trouble)
        elif self._interrupted or self._phase == "closed":
            await self._end_command(Event("interrupted"))
        elif self._lost:
            await self._end_command(Event("lost", command=self._resumable()))
        await self._notify()

    async def advance(self, run_id: str) -> Event:
        """Lets a run go on past the epoch that it reported last, and waits for the next event."""
        if self._runs(run_id) and not self._events and self._waits_for_decision:
            self._waits_for_decision = False
            await self._notify()
        await self._until(lambda: bool(self._events) or run_id != self._run_id)
        # Whoever asks for a run that another has followed is the ghost of a caller that died.
        return self._events.popleft() if run_id == self._run_id else Event("interrupted")

    # Called by the workers.

    async def enter(self, nodes: tuple[str, ...] = ()) -> int:
        """A new group of workers is ready.

        Args:
            nodes: Ray's ids of the nodes that it is on.

        Returns:
            The group's number.
        """
        self._group += 1
        self._nodes, self._lost = nodes, False
        self._turn("ready" if self._phase == "starting" else self._phase)
        if self._command is not None and self._taken:
            self._taken = False
            self._restarts += 1
            if self._restarts > MAX_RESTARTS:
                failures = self._failures.get(self._command.run_id, {}).values()
                errors = sorted({failure.error or "" for failure in failures})
                reason = "; ".join(errors) or "a worker process died"
                error = f"gave up after {MAX_RESTARTS} restarts of its workers: {reason}"
                await self._end_command(Event("failed", error=error))
        self._failures.clear()
        await self._notify()
        return self._group

    async def take(self, group: int) -> Command | None:
        """Waits for the next command; None to shut down."""
        await self._until(lambda: self._is_for(group) or self._gone(group))
        if self._gone(group):
            return None
        self._taken = True
        return self._command

    async def report(self, group: int, run_id: str, epoch: dict[str, Any], state: bytes) -> bool:
        """Passes an epoch on and waits for what the caller makes of it.

        Returns:
            Whether the run goes on.
        """
        if not self._runs(run_id) or group != self._group:
            return False
        assert self._command is not None
        epochs = [*self._epochs, epoch]
        if self._command.savepoint is not None:
            # Not in the event loop: other executors' callers are not to wait for the store.
            savepoint = Savepoint(epochs, state)
            await asyncio.to_thread(write_savepoint, self._command.savepoint, savepoint)
            if not self._runs(run_id) or group != self._group:
                return False
        self._command = replace(self._command, state=state)
        self._epochs = epochs
        self._events.append(Event("epoch", epoch=epoch))
        self._waits_for_decision = True
        await self._notify()
        await self._until(
            lambda: not self._runs(run_id) or not self._waits_for_decision or group != self._group
        )
        return self._runs(run_id) and group == self._group

    async def finish(self, group: int, run_id: str, result: bytes | None) -> None:
        """A run has come to its end."""
        if self._runs(run_id) and group == self._group:
            await self._end_command(Event("done", result=result))

    async def fail(self, group: int, run_id: str, rank: int, failure: Event) -> bool:
        """A rank has raised an exception.

        If all ranks have, they are still in step: the run has failed and the workers stay. If
        only some have, the others may be dead or wait for them for ever: the workers must be
        restarted, and the run goes on from its last epoch.

        Returns:
            Whether the workers stay.
        """
        if group != self._group:
            return False
        failures = self._failures.setdefault(run_id, {})
        failures[rank] = failure
        await self._notify()
        await self._until(lambda: len(failures) == self._n_workers, FAILURE_WINDOW_S)
        if len(failures) < self._n_workers:
            return False
        if self._runs(run_id):
            await self._end_command(failures[0])
        return True

    # Helpers.

    def _go_on_from(self, saved: Savepoint) -> None:
        """Takes the run up where it was left: the caller decides first whether it goes on."""
        assert self._command is not None
        self._command = replace(self._command, state=saved.state)
        *before, last = self._epochs = list(saved.epochs)
        self._events.append(Event("epoch", epoch=last, before=tuple(before)))
        self._waits_for_decision = True

    def _resumable(self) -> Command | None:
        """The command in flight, with all that is known of it."""
        return self._command and replace(self._command, epochs=tuple(self._epochs))

    def _turn(self, phase: Phase) -> None:
        """Goes over to a phase; `_notify` is the caller's to call."""
        self._phase = phase
        self._version += 1

    def _runs(self, run_id: str) -> bool:
        return self._command is not None and self._command.run_id == run_id

    def _is_for(self, group: int) -> bool:
        # A run whose workers died while its caller was thinking waits for the caller first.
        waiting = self._command is not None and not self._taken and not self._waits_for_decision
        return group == self._group and waiting

    def _gone(self, group: int) -> bool:
        return self._phase in ("closed", "broken") or group != self._group

    async def _end_command(self, event: Event) -> None:
        if self._command is not None:
            self._events.append(event)
            self._command = None
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, true: Callable[[], bool], timeout_s: float | None = None) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(true), timeout_s)
            except TimeoutError:
                return


async def _saved(command: Command) -> Savepoint | None:
    """Where a run was left, unless its caller says where it goes on."""
    if command.savepoint is None or command.state is not None:
        return None
    return await asyncio.to_thread(read_savepoint, command.savepoint)
