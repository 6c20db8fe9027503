"""How much longer a search takes: the epochs that are left, by the seconds that one has taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from adu.training.trainer import EpochReport
from pipeline.executors.run import PROOF, REFERENCE, TRIAL, Run
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord

# What is expected of a trial's epochs counts as much as so many trials that have ended.
PRIOR_TRIALS = 2

# A final run looks at the test split and leaves a checkpoint: so many epochs' time, until the
# first one has told.
TEST_EPOCHS = 1.0

# So many epochs' time for the attacks on a model, until the first one has told: 13 attacks on the
# demo, where they are quick.
PROOF_EPOCHS = 12.0


@dataclass(frozen=True)
class StudyWork:
    """What a study has to do.

    Attributes:
        trials: Trials at most.
        epochs: Of a run that is not stopped.
        likely_epochs: Of a trial on average, stopped ones included, before any has ended.
        again: Runs of its race and its tries, which are not stopped.
        finals: Final runs, which are tested as well.
        proofs: Models that are attacked.
    """

    trials: int
    epochs: int
    likely_epochs: float
    again: int
    finals: int
    proofs: int = 0


@dataclass
class _Pace:
    """Seconds and epochs that were seen, of one kind of runs."""

    seconds: float = 0.0
    epochs: int = 0

    def add(self, seconds: float, epochs: int) -> None:
        self.seconds += seconds
        self.epochs += epochs


@dataclass
class _Study:
    trials: int = 0
    again: int = 0
    finals: int = 0
    proofs: int = 0
    is_over: bool = False


@dataclass
class _Running:
    run: Run
    began_s: float
    # At the end of its last epoch.
    seconds: float = 0.0
    epoch: int = 0


@dataclass
class TimeLeft(RunListener):
    """Estimates how long a search still takes.

    Args:
        studies: Their names.
        work: What each has to do.
        n_at_once: Runs at the same time.
    """

    studies: Sequence[str]
    work: StudyWork
    n_at_once: int
    _seen: dict[str, _Study] = field(init=False)
    _running: dict[str, _Running] = field(init=False, default_factory=dict)
    _trials: _Pace = field(init=False, default_factory=_Pace)
    _tested: _Pace = field(init=False, default_factory=_Pace)
    _ended: _Pace = field(init=False, default_factory=_Pace)
    # Of models that were attacked, each an epoch.
    _proofs: _Pace = field(init=False, default_factory=_Pace)
    _n_ended: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._seen = {name: _Study() for name in self.studies}

    def run_started(self, run: Run) -> None:
        """A run has an executor."""
        if run.stage == REFERENCE:
            return
        self._running[run.key] = _Running(run, time.monotonic())
        if run.tested:
            # Nothing is tested before the choice: its race is over, whatever came to it.
            self._seen[run.study].again = self.work.again

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """A run has finished an epoch."""
        if running := self._running.get(run.key):
            running.seconds = time.monotonic() - running.began_s
            running.epoch = report.epoch

    def run_suspended(self, run: Run) -> None:
        """A run waits for another executor."""
        self._running.pop(run.key, None)

    def trial_known(self, study: str, record: TrialRecord) -> None:
        """A trial has ended; one of an earlier session says nothing of this one's speed."""
        self._seen[study].trials += 1
        self._n_ended += 1
        self._ended.add(record.wall_s, record.epochs_done)

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""
        if self._running.pop(run.key, None) is None:
            return
        if run.stage == PROOF:
            self._seen[run.study].proofs += 1
            self._proofs.add(record.wall_s, 1)
            return
        pace = self._tested if run.tested else self._trials
        pace.add(record.wall_s, record.epochs_done)
        if run.stage == TRIAL:
            self.trial_known(run.study, record)
        elif run.tested:
            self._seen[run.study].finals += 1
        else:
            self._seen[run.study].again += 1

    def study_over(self, study: str) -> None:
        """Nothing of a study is left."""
        self._seen[study].is_over = True

    def trials_over(self, study: str) -> None:
        """A study has spent a budget: none of its trials is left."""
        self._seen[study].trials = self.work.trials

    def seconds(self) -> float | None:
        """The estimate; None before the first epoch."""
        pace = _Pace(self._trials.seconds, self._trials.epochs)
        for running in self._running.values():
            if not running.run.tested:
                pace.add(running.seconds, running.epoch)
        work, tested = self.work, self._tested
        if not pace.epochs and not tested.epochs:
            return None
        epoch_s = (pace if pace.epochs else tested).seconds / (pace.epochs or tested.epochs)
        tested_s = epoch_s * (1 + TEST_EPOCHS / work.epochs)
        if tested.epochs:
            tested_s = tested.seconds / tested.epochs
        again = sum(max(work.again - study.again, 0) for study in self._at_work())
        finals = sum(max(work.finals - study.finals, 0) for study in self._at_work())
        left_s = (self._trial_epochs() + self._whole_epochs(again, tested=False)) * epoch_s
        left_s += self._whole_epochs(finals, tested=True) * tested_s
        return (left_s + self._attacks_s(epoch_s)) / max(self.n_at_once, 1)

    def _trial_epochs(self) -> float:
        prior = PRIOR_TRIALS * self.work.likely_epochs
        likely = (prior + self._ended.epochs) / (PRIOR_TRIALS + self._n_ended)
        n_left = sum(max(self.work.trials - s.trials, 0) for s in self._at_work())
        done = sum(min(r.epoch, likely) for r in self._running.values() if r.run.stage == TRIAL)
        return max(n_left * likely - done, 0.0)

    def _whole_epochs(self, n_left: int, *, tested: bool) -> float:
        """Those of runs that are not stopped, so many of which have not ended."""
        running = [r for r in self._running.values() if r.run.stage != TRIAL]
        done = sum(r.epoch for r in running if r.run.tested == tested)
        return max(n_left * self.work.epochs - done, 0.0)

    def _attacks_s(self, epoch_s: float) -> float:
        n_left = sum(max(self.work.proofs - s.proofs, 0) for s in self._at_work())
        told = self._proofs
        return n_left * (told.seconds / told.epochs if told.epochs else PROOF_EPOCHS * epoch_s)

    def _at_work(self) -> list[_Study]:
        return [study for study in self._seen.values() if not study.is_over]
