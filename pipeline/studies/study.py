"""One study: Optuna's memory of the trials of one forget set, and what it proposes next.

Ray's own OptunaSearch tells a trial that was stopped early COMPLETE with its last value, enqueues
its first trials again whenever it is built, keeps no intermediate values where there are two
objectives, and forgets what ran when its process dies. A `Study` does none of that:

- A trial that is stopped early is PRUNED with all its intermediate values.
- The defaults, and what a study is warmed up with, are enqueued when it is created.
- Optuna's storage has the record of each finished trial and is enough to go on. Trials that ran
  when everything was killed are WAITING once more and go on under their old number.
- A proposal depends on the seed, the study and what is known, not on earlier processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from adu import storage
from adu.errors import UserError
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import TRIAL, Run
from pipeline.studies.attributes import (
    AGAIN,
    RECORD,
    SCORES,
    SEARCHED_S,
    TRY,
    ZERO_SHOT_KEPT,
    ZERO_SHOT_MEM,
    add_further_seeds,
    epoch_figures,
    figures_of,
    goal_beside,
    stored_record,
    stored_scores,
)
from pipeline.studies.config import StudyConfig
from pipeline.studies.records import TrialRecord
from pipeline.studies.samplers import GRID, make_sampler
from pipeline.studies.selection import best_trial
from pipeline.studies.space import Space, Value, configure, defaults, fit, grid, searched, suggest

# Optuna's number of the trial with the defaults, which is enqueued first.
DEFAULTS = 0

# Trials without a better one after which a study that may have more than its own is left alone.
CONVERGED_TRIALS = 10

EndedBy = Literal["trials", "wall time", "target H", "patience", "the search's budget"]


class Budget(Protocol):
    """What a study may spend beside its own budgets; see `pipeline.studies.budget`."""

    def is_spent(self) -> bool:
        """Whether no further trial may begin."""

    def n_left(self, study: Study) -> int | None:
        """Trials that the study may still begin; None if that is for itself to say."""


@dataclass(frozen=True)
class StudySpec:
    """What one study is about.

    Attributes:
        name: Unique in the search; part of file names.
        base: The run's configuration, forget set included, apart from what is searched.
        space: What is searched.
        config: How.
        context: Model and images, as plain values.
        storage: Optuna's, shared by the studies of a search.
        stored_name: The study's name there.
        place: Folder or URL of the last epochs of the trials at work.
        first: Gives parameters to try after the paper's defaults.
        deciding: Epochs after which a trial may be stopped.
        commit: Returns once what Optuna's storage holds cannot be lost any more.
    """

    name: str
    base: RunConfig
    space: Space
    config: StudyConfig
    context: Mapping[str, Any]
    storage: BaseStorage
    stored_name: str
    place: str
    first: Callable[[], Sequence[Mapping[str, Value]]] = tuple
    commit: Callable[[], None] = lambda: None
    deciding: tuple[int, ...] = ()


@dataclass
class _Live:
    trial: optuna.Trial
    # Epochs that Optuna has been told of: a trial that goes on has some.
    known: set[int] = field(default_factory=set)


class Study:
    """A source of runs: the trials of one forget set.

    Args:
        spec: What it is about.
        on_end: Called with it when its last trial has ended.
    """

    def __init__(self, spec: StudySpec, on_end: Callable[[Study], None] = lambda _: None) -> None:
        self.spec = spec
        self.on_end = on_end
        self.most_at_once = spec.config.at_once or math.inf
        self.records: list[TrialRecord] = []
        self.ended_by: EndedBy = "trials"
        self._live: dict[int, _Live] = {}
        config = spec.config
        self._optuna = optuna.create_study(
            study_name=spec.stored_name,
            storage=spec.storage,
            directions=["maximize"] * config.goal.n_objectives,
            load_if_exists=True,
        )
        self.goal = goal_beside(config.goal, self._optuna.user_attrs)
        self.budget: Budget | None = None
        self.began_at = time.monotonic() - self._optuna.user_attrs.get(SEARCHED_S, 0.0)
        self._mend()
        self.restored = {
            trial.number: stored_scores(trial.user_attrs)
            for trial in self._trials()
            if RECORD in trial.user_attrs
        }
        self.records += [
            stored_record(trial) for trial in self._trials() if trial.number in self.restored
        ]
        add_further_seeds(self.records, self._optuna.user_attrs)

    @property
    def name(self) -> str:
        """Unique in the search."""
        return self.spec.name

    @property
    def n_live(self) -> int:
        """Trials that are at work, or paused."""
        return len(self._live)

    @property
    def n_begun(self) -> int:
        """Trials that have begun, ended ones included."""
        return len(self.records) + len(self._live)

    @property
    def n_left(self) -> int:
        """Trials that have not begun."""
        left = self.budget.n_left(self) if self.budget else None
        left = self.spec.config.trials - self.n_begun if left is None else left
        if self.spec.config.sampler == GRID and self._trials():
            left = min(left, len(self._trials(TrialState.WAITING)))
        return max(left, 0)

    @property
    def wants(self) -> bool:
        """Whether it has another trial to propose."""
        return self.n_left > 0 and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether a budget is spent; there is always one trial."""
        config, records = self.spec.config, self.records
        if not records or self.ended_by != "trials":
            return self.ended_by != "trials"
        patience = config.patience
        if patience is None and self.budget and len(records) >= config.trials:
            patience = CONVERGED_TRIALS
        judged = config.target_h is not None or patience is not None
        best = best_trial(records, self.goal) if judged else None
        searched_s = time.monotonic() - self.began_at
        if config.target_h is not None and best and best.val and best.val.h >= config.target_h:
            self.ended_by = "target H"
        elif patience is not None and self._trials_since_best() >= patience:
            self.ended_by = "patience"
        elif config.wall_time_s is not None and searched_s >= config.wall_time_s:
            self.ended_by = "wall time"
        elif self.budget is not None and self.budget.is_spent():
            self.ended_by = "the search's budget"
        return self.ended_by != "trials"

    def curves(self) -> list[dict[int, float]]:
        """Merit after each epoch of every trial that an earlier session has finished."""
        return [
            {epoch: self.goal.between(scores) for epoch, scores in by_epoch.items()}
            for by_epoch in self.restored.values()
        ]

    def set_zero_shot(self, val: Scores) -> None:
        """Keeps zero-shot's validation scores, of which the least Mem may be a share."""
        self.goal = self.goal.beside(val, self.spec.base.forget)
        self._optuna.set_user_attr(ZERO_SHOT_MEM, self.goal.zero_shot_mem)
        self._optuna.set_user_attr(ZERO_SHOT_KEPT, self.goal.zero_shot_kept)

    def propose(self) -> Run:
        """The next trial, or one that is to go on."""
        spec = self.spec
        if not self._trials():
            self._enqueue()
        self._optuna.sampler = self._sampler()
        trial = self._optuna.ask()
        params = suggest(trial, spec.space, spec.base)
        # Before it can leave its state, which is that of its number.
        spec.commit()
        self._live[trial.number] = _Live(trial, set(stored_scores(trial.user_attrs)))
        return Run(
            spec.name,
            str(trial.number),
            TRIAL,
            configure(spec.base, params).model_dump(mode="json", by_alias=True),
            spec.context,
            storage.join(spec.place, str(trial.number)),
            number=trial.number,
            params=params,
            deciding=spec.deciding,
            distance=self.goal.measures_distance,
        )

    def keep(self, run: Run, report: EpochReport) -> bool:
        """Tells Optuna of an epoch; returns whether that is news."""
        live = self._live[run.number]
        if report.epoch in live.known:
            return False
        # Optuna takes intermediate values of one objective only.
        if self.goal.n_objectives == 1:
            live.trial.report(self.goal.between(report.val), report.epoch)
        live.trial.set_user_attr(f"{SCORES}{report.epoch}", epoch_figures(report))
        live.known.add(report.epoch)
        return True

    def end(self, run: Run, record: TrialRecord) -> None:
        """Tells Optuna of a trial's end."""
        live = self._live.pop(run.number)
        live.trial.set_user_attr(RECORD, json.dumps(asdict(record)))
        self._optuna.set_user_attr(SEARCHED_S, time.monotonic() - self.began_at)
        self._tell(record)
        self.spec.commit()
        # Until here it could have gone on from there. One that is left is never read.
        with contextlib.suppress(UserError):
            storage.remove(run.state_file)
        self.records.append(record)

    def keep_again(
        self, record: TrialRecord, seed: int, scores: Scores, is_try: bool = False
    ) -> None:
        """Keeps what a trial's configuration came to with a further seed."""
        kind, known = (TRY, record.tries) if is_try else (AGAIN, record.again)
        known[seed] = replace(scores, n_by_domain={})
        # Of the study: Optuna changes no trial that has ended.
        self._optuna.set_user_attr(f"{kind}{record.number}, {seed}", figures_of(scores))
        self.spec.commit()

    def suspend(self) -> None:
        """Has the trials that did not come to an end wait for the search to be resumed."""
        self._live.clear()
        # It is mended when it is opened again as well.
        with contextlib.suppress(UserError):
            self._mend()

    # Helpers.

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False, states=states or None)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        config = self.spec.config
        # Studies differ in their random trials, and trials too, whoever asks for them.
        seed = config.seed + zlib.crc32(self.name.encode()) + 7919 * len(self._trials())
        conditional = any(parameter.when for parameter in self.spec.space.values())
        return make_sampler(config.sampler, seed % 2**32, config.startup_trials, conditional)

    def _trials_since_best(self) -> int:
        best = best_trial(self.records, self.goal)
        ended = [record for record in self.records if record.state != "failed"]
        return len(ended) - 1 - ended.index(best) if best in ended else 0

    def _mend(self) -> None:
        """Brings trials that nobody runs any more into a state to go on from."""
        stored = self.spec.storage
        study_id = stored.get_study_id_from_name(self.spec.stored_name)
        for trial in self._trials(TrialState.RUNNING):
            if RECORD in trial.user_attrs:
                # Killed within the last step of its end.
                self._tell(stored_record(trial))
            else:
                trial_id = stored.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                stored.set_trial_state_values(trial_id, TrialState.WAITING)

    def _enqueue(self) -> None:
        """Enqueues what is tried before the sampler is asked."""
        spec = self.spec
        first = [defaults(spec.space), *(fit(spec.space, params) for params in spec.first())]
        if spec.config.sampler == GRID:
            first += grid(spec.space, spec.base, spec.config.grid_points)
        # A range's value is the same as a whole number and with a decimal point.
        distinct = {tuple(sorted(values.items())): values for values in first}
        for values in distinct.values():
            self._optuna.enqueue_trial(searched(spec.space, values))

    def _tell(self, record: TrialRecord) -> None:
        if record.state == "complete":
            assert record.val is not None
            self._optuna.tell(record.number, self.goal.values(record.val))
        elif record.state == "stopped":
            # Optuna takes the last of the intermediate values.
            self._optuna.tell(record.number, state=TrialState.PRUNED)
        else:
            self._optuna.tell(record.number, state=TrialState.FAIL)
