"""What the workers of an executor do: open a session, then execute one command after another.

The session is what they hold from run to run; here is only how commands reach all ranks and how
exceptions are told from broken workers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import ray

from adu.errors import UserError
from pipeline.executors.mailbox import Command, Event, MailboxLink

# Ranks wait for a command as long as it takes; a peer that dies is noticed all the same.
PATIENCE = timedelta(days=365)


class Run(Protocol):
    """One run, in the hands of the workers that execute it."""

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Trains, giving a report with at least ``epoch`` (from 1) after each epoch."""

    def state(self) -> bytes:
        """All that is needed to go on after the last epoch. Asked of rank 0 only."""

    def test(self) -> bytes:
        """Evaluates what was trained; the result of the run."""


class Session(Protocol):
    """What the workers hold from run to run.

    Every worker makes the same calls; collectives are the session's own business.
    """

    def start(self, run: dict[str, Any], state: bytes | None) -> Run:
        """Begins a run, or goes on with one."""

    def close(self) -> None:
        """Gives up what outlives the process."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told when it starts.

    Attributes:
        session: ``module:function`` that opens the `Session`, given the next two.
        config: The session's configuration, as plain values.
        threads: CPU threads for torch.
        mailbox: The executor's mailbox.
    """

    session: str
    config: dict[str, Any]
    threads: int
    mailbox: MailboxLink


def serve(config: dict[str, Any]) -> None:
    """What every worker of an executor does, from its start to its end."""
    setup: WorkerSetup = config["setup"]
    session = _open_session(setup)
    if session is None:
        return
    link = _Link(setup.mailbox)
    while True:
        command = link.next_command()
        if command is None:
            # Ray Train would start a worker again, and again, that fails at its end.
            with contextlib.suppress(Exception):
                session.close()
            return
        try:
            _execute(session, command, link)
        except Exception as error:
            if not link.failed(command, error) or _spoils_process(error):
                raise
        _free_memory()


def _open_session(setup: WorkerSetup) -> Session | None:
    import torch

    torch.set_num_threads(setup.threads)
    module, _, function = setup.session.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(setup.config)
    except Exception as error:
        setup.mailbox.ask("break_down", _failure(error))
        return None


def _execute(session: Session, command: Command, link: _Link) -> None:
    run = session.start(command.run, command.state)
    if command.kind == "check":
        link.finish(command, None)
        return
    for epoch in run.epochs():
        if not link.report(command, epoch, run.state):
            return
    link.finish(command, run.test() if command.kind == "test" else None)


def _spoils_process(error: Exception) -> bool:
    """Whether nothing on the GPU works any more after an exception (out of memory is not one)."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def _free_memory() -> None:
    import torch

    # What the last run has left; the next one may need it, and so may who shares the GPU.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Link:
    """A worker's line to the mailbox. Rank 0 speaks, and tells the others what it hears."""

    def __init__(self, mailbox: MailboxLink) -> None:
        import torch.distributed as dist

        self._mailbox = mailbox
        self._rank, self._world_size = 0, 1
        self._ranks: Any = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
            # Always gloo: waiting for a command must not keep a GPU busy.
            self._ranks = dist.new_group(backend="gloo", timeout=PATIENCE)
        nodes = self._nodes()
        self._group = self._share(lambda: mailbox.ask("enter", nodes))

    def next_command(self) -> Command | None:
        """Waits for a command; None to leave."""
        command: Command | None = self._share(lambda: self._mailbox.ask("take", self._group))
        return command

    def report(self, command: Command, epoch: dict[str, Any], state: Callable[[], bytes]) -> bool:
        """Reports an epoch; returns whether the run goes on."""
        return bool(
            self._share(
                lambda: self._mailbox.ask("report", self._group, command.run_id, epoch, state())
            )
        )

    def finish(self, command: Command, result: bytes | None) -> None:
        """Reports the end of a run."""
        if self._rank == 0:
            self._mailbox.ask("finish", self._group, command.run_id, result)

    def failed(self, command: Command, error: Exception) -> bool:
        """Reports an exception of this rank; returns whether the group can stay."""
        stays: bool = self._mailbox.ask(
            "fail", self._group, command.run_id, self._rank, _failure(error)
        )
        return stays

    def _nodes(self) -> tuple[str, ...]:
        """Ray's ids of the nodes that the ranks are on."""
        here: str = ray.get_runtime_context().get_node_id()
        if self._ranks is None:
            return (here,)
        import torch.distributed as dist

        everywhere = [""] * self._world_size
        dist.all_gather_object(everywhere, here, group=self._ranks)
        return tuple(sorted(set(everywhere)))

    def _share(self, ask: Callable[[], Any]) -> Any:
        answer = [ask() if self._rank == 0 else None]
        if self._ranks is not None:
            import torch.distributed as dist

            dist.broadcast_object_list(answer, src=0, group=self._ranks)
        return answer[0]


def _failure(error: Exception) -> Event:
    is_users = isinstance(error, UserError)
    text = str(error) if is_users else one_line(error)
    return Event("failed", error=text, user_error=is_users)


def one_line(error: BaseException) -> str:
    """An exception's type and message without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
