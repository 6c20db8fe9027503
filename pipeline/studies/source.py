"""Where runs come from: studies (see `pipeline.studies.study`), or lists known beforehand."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from adu import storage
from adu.errors import UserError
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome, read_outcome
from pipeline.executors.run import Run
from pipeline.studies.records import TrialRecord


class Source(Protocol):
    """What a queue takes runs from.

    Attributes:
        on_end: Called with it once nothing of it is left.
        most_at_once: How many of its runs may be at work at the same time.
    """

    on_end: Callable[[Any], None]
    most_at_once: float

    @property
    def name(self) -> str:
        """Unique in the job."""

    @property
    def n_live(self) -> int:
        """Runs that were proposed and have not ended."""

    @property
    def wants(self) -> bool:
        """Whether it has another run to propose."""

    def propose(self) -> Run:
        """The next run."""

    def keep(self, run: Run, report: EpochReport) -> bool:
        """A run has finished an epoch; returns whether that is news."""

    def end(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""

    def suspend(self) -> None:
        """What has not ended will go on when the job is resumed."""


class EpochsSeen:
    """Counts the epochs of runs that no storage knows of."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def add(self, run: Run, report: EpochReport) -> bool:
        """Counts an epoch; returns whether that is news."""
        last = self._last.get(run.key, 0)
        self._last[run.key] = max(report.epoch, last)
        return report.epoch > last


class FixedRuns:
    """A source of runs that are known beforehand and tested.

    Equal ones, which have the same place, are run once; those that have left their outcome
    already are not run again.

    Args:
        name: Unique in the job.
        runs: The runs.
        on_outcome: Called for each run that has come to its outcome.
        on_end: Called with this when none is left.
    """

    most_at_once = math.inf

    def __init__(
        self,
        name: str,
        runs: Sequence[Run],
        on_outcome: Callable[[Run, TestOutcome], None] = lambda _, __: None,
        on_end: Callable[[FixedRuns], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.on_end = on_end
        self._on_outcome = on_outcome
        self._runs: dict[str, Run] = {}
        for run in runs:
            self._runs.setdefault(run.place, run)
        self.failures: dict[str, str] = {}
        self._epochs = EpochsSeen()
        self._waiting = deque(run for run in self._runs.values() if not self._take(run))
        self.n_live = 0

    @property
    def wants(self) -> bool:
        """Whether a run has not begun."""
        return bool(self._waiting)

    def propose(self) -> Run:
        """The next run."""
        self.n_live += 1
        return self._waiting.popleft()

    def keep(self, run: Run, report: EpochReport) -> bool:
        """Counts an epoch; returns whether that is news."""
        return self._epochs.add(run, report)

    def end(self, run: Run, record: TrialRecord) -> None:
        """Takes a run's outcome, or notes why there is none."""
        self.n_live -= 1
        if record.state == "failed" or not self._take(run):
            self.failures[run.place] = record.error or f"{run.outcome_file}: is not there"
        with contextlib.suppress(UserError):
            storage.remove(run.state_file)

    def suspend(self) -> None:
        """Nothing to do: what has no outcome is run again."""

    def _take(self, run: Run) -> bool:
        config = RunConfig.model_validate(run.config)
        outcome = read_outcome(run.outcome_file, config)
        if outcome is None:
            return False
        self._on_outcome(run, outcome)
        return True
