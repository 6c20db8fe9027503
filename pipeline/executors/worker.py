"""What the workers of an executor do: open a session, then one run after another.

The session is what they hold from run to run; here is only how runs reach all ranks and how
exceptions are told from broken workers.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train

from adu.errors import UserError
from pipeline.executors.mailbox import Line
from pipeline.executors.run import Event, Run, one_line
from pipeline.executors.savepoint import Savepoint, read_savepoint, write_savepoint

# Ranks wait for a run as long as it takes; a peer that dies is noticed all the same.
PATIENCE = timedelta(days=365)


class Training(Protocol):
    """One run, in the hands of the workers that execute it."""

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Trains, giving a report with at least ``epoch`` (from 1) after each epoch."""

    def state(self) -> bytes:
        """All that is needed to go on after the last epoch. Asked of rank 0 only."""

    def test(self, epochs: Sequence[Mapping[str, Any]]) -> bytes:
        """Evaluates what was trained on the test split; the outcome, as a file holds it.

        Args:
            epochs: The reports of all its epochs, which the outcome keeps.
        """


class Session(Protocol):
    """What the workers hold from run to run.

    Every worker makes the same calls; collectives are the session's own business.
    """

    def start(self, run: Run, state: bytes | None) -> Training:
        """Begins a run, or goes on with one."""

    def attack(self, run: Run) -> Iterator[tuple[int, int]]:
        """Attacks a model, asked of rank 0 only; how many attacks are done, and of how many."""

    def close(self) -> None:
        """Gives up what outlives the process."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told when it starts.

    Attributes:
        session: ``module:function`` that opens the `Session`, given this.
        config: The session's configuration, as plain values.
        threads: CPU threads for torch.
        on_gpu: Whether the worker has a GPU, or a part of one.
        probes: Configurations that the session must accept before anything is trained.
        output: Local folder in which runs keep their state; None if that is a URL.
    """

    session: str
    config: Mapping[str, Any]
    threads: int = 1
    on_gpu: bool = False
    probes: Sequence[Mapping[str, Any]] = ()
    output: str | None = None


class Ranks:
    """The workers of an executor. Rank 0 speaks to the mailbox, and tells the others."""

    def __init__(self, line: Line, on_gpu: bool) -> None:
        context = ray.train.get_context()
        self.rank, self.n_ranks = context.get_world_rank(), context.get_world_size()
        self._group: Any = None
        if self.n_ranks > 1:
            import torch.distributed as dist

            address = line.ask("meet", _free_address() if self.rank == 0 else None)
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                init_method=f"tcp://{address}",
                rank=self.rank,
                world_size=self.n_ranks,
            )
            # Always gloo: waiting for a run must not keep a GPU busy.
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(self, ask: Callable[[], Any]) -> Any:
        """Has rank 0 ask, and gives the answer on every rank."""
        answer = [ask() if self.rank == 0 else None]
        if self._group is not None:
            import torch.distributed as dist

            dist.broadcast_object_list(answer, src=0, group=self._group)
        return answer[0]


def serve(setup: WorkerSetup, line: Line) -> None:
    """What every worker of an executor does, from its start to its end."""
    line.ask("enter", _placement_group(), False)
    try:
        _check_output(setup.output)
        ranks = Ranks(line, setup.on_gpu)
        session: Session = _function(setup.session)(setup)
    except Exception as error:
        line.ask("end", _event("broken", error))
        return
    line.ask("enter", _placement_group(), True)
    while (taken := ranks.share(lambda: line.ask("take"))) is not None:
        ticket, run = taken
        try:
            (_attack if run.attacked else _execute)(session, ticket, run, line, ranks)
        except Exception as error:
            if _spoils_process(error) or not line.ask(
                "fail", ticket, ranks.rank, _event("failed", error)
            ):
                raise
    with contextlib.suppress(Exception):
        session.close()


def _check_output(output: str | None) -> None:
    """Sees whether this node shares the folder of the output with the driver's."""
    if output is not None and not Path(output).is_dir():
        raise UserError(
            f"output {output}: is not seen on node {ray.util.get_node_ip_address()} (give a URL, "
            "or a folder that all nodes share)"
        )


def _execute(session: Session, ticket: int, run: Run, line: Line, ranks: Ranks) -> None:
    saved: Savepoint | None = ranks.share(lambda: read_savepoint(run.state_file))
    training = session.start(run, saved.state if saved else None)
    reports = list(saved.epochs) if saved else []
    if reports:
        # Whether it goes on after this one may never have been decided.
        event = Event("epoch", reports[-1], before=tuple(reports[:-1]))
        if not ranks.share(lambda: line.ask("report", ticket, event)):
            return

    def report() -> bool:
        write_savepoint(run.state_file, Savepoint(reports, training.state()))
        goes_on: bool = line.ask("report", ticket, Event("epoch", reports[-1]))
        return goes_on

    for epoch in training.epochs():
        reports.append(epoch)
        if not ranks.share(report):
            return
    if run.tested:
        outcome = training.test(reports)
        if ranks.rank == 0:
            _keep(run.outcome_file, outcome)
    if ranks.rank == 0:
        line.ask("finish", ticket, Event("done"))


def _attack(session: Session, ticket: int, run: Run, line: Line, ranks: Ranks) -> None:
    """Has rank 0 attack a model: nothing is trained that would need the others."""

    def attack() -> Exception | None:
        try:
            for attacks in session.attack(run):
                if not line.ask("report", ticket, Event("attack", attacks=attacks)):
                    return None
            line.ask("finish", ticket, Event("done"))
        except Exception as error:
            return error
        return None

    error = ranks.share(attack)
    if error is not None:
        # On all ranks, so that they stay in step.
        raise error


def _keep(file: str, outcome: bytes) -> None:
    from adu import storage
    from pipeline.patience import patiently

    patiently(file, lambda: storage.write_bytes(file, outcome))


def _event(kind: Any, error: Exception) -> Event:
    is_users = isinstance(error, UserError)
    return Event(kind, error=str(error) if is_users else one_line(error), user_error=is_users)


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _placement_group() -> str | None:
    group = ray.util.get_current_placement_group()
    return group.id.hex() if group else None


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def _spoils_process(error: Exception) -> bool:
    """Whether nothing on the GPU works any more after an exception (out of memory is not one)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)
