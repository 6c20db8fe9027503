"""What proposes a study's trials to Ray Tune and tells Optuna what became of them.

Ray's own OptunaSearch tells a trial that was stopped early COMPLETE with its last value, enqueues
its first trials again whenever it is built, keeps no intermediate values where there are two
objectives, and forgets what ran when its process dies. This one does none of that:

- A trial that the scheduler stops is PRUNED with all its intermediate values.
- The paper's defaults, and what a study is warmed up with, are enqueued when it is created.
- Optuna's storage has the record of each finished trial and is enough to go on. Trials that ran
  when everything was killed are WAITING once more and go on under their old number.
- A proposal depends on the seed, the study and what is known, not on earlier processes.
- Nothing is proposed before there is an executor for it, however many there are at the time; a
  trial that has lost its executor for good is asked for again and goes on with another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from ray.tune.search import Searcher

from adu import storage
from adu.config import StrictModel
from adu.errors import UserError
from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig
from pipeline.executors.mailbox import MAX_RESTARTS, Command, Event
from pipeline.executors.session import epoch_report
from pipeline.executors.sharing import Lease, Share
from pipeline.studies.records import TrialRecord
from pipeline.studies.samplers import SamplerName, make_sampler
from pipeline.studies.selection import best_trial
from pipeline.studies.space import Space, Value, configure, defaults, fit, grid, searched, suggest
from pipeline.studies.trial import trial_config

METRIC = "h"

# How long Tune may be kept waiting for an executor where it has nothing else to do.
TURN_S = 1.0

# Attributes of Optuna's trials.
RECORD = "record"
SCORES = "val, epoch "

EndedBy = Literal["trials", "wall time", "target H", "patience"]


class StudyConfig(StrictModel):
    """How each study searches."""

    trials: int = Field(20, ge=1, description="trials of a study, the paper's defaults included")
    wall_time_s: float | None = Field(
        None, gt=0, description="seconds of a study after which no trial begins; unset: no limit"
    )
    target_h: float | None = Field(
        None, gt=0, le=1, description="validation H at which a study ends; unset: none"
    )
    patience: int | None = Field(
        None, ge=1, description="trials without a better one after which a study ends; unset: none"
    )
    sampler: SamplerName = Field("tpe", description="how Optuna proposes")
    objective: Literal["h", "mem_for"] = Field(
        "h", description="what is searched for: H, or Mem and For with their Pareto front"
    )
    min_mem: float | None = Field(
        None,
        ge=0,
        le=1,
        description="choose the highest For with at least this Mem; unset: the highest H",
    )
    startup_trials: int = Field(5, ge=1, description="random trials before the sampler learns")
    grid_points: int = Field(3, ge=2, description="values in each range, for the grid")
    warm_start: tuple[str, ...] = Field(
        (),
        description="try the best of these first: output folders of earlier searches, or "
        "'siblings', the studies of this one that have ended",
    )
    seed: int = Field(0, ge=0, description="of the sampler")
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha", description="how trials are stopped early"
    )
    grace_epochs: int = Field(5, ge=1, description="epochs before a trial may be stopped")
    reduction_factor: float = Field(
        3.0, gt=1, description="of the trials at a rung, the best 1/factor go on (ASHA)"
    )
    storage: str | None = Field(
        None, description="database of Optuna's studies; unset: a file in the output folder"
    )


@dataclass(frozen=True)
class Study:
    """What one study is about.

    Attributes:
        name: Unique in the search; part of file names.
        base: The run's configuration, forget set included, apart from what is searched.
        space: What is searched.
        config: How.
        storage: Optuna's, shared by the studies of a search.
        stored_name: The study's name there.
        savepoints: Folder or URL of the last epochs of the trials at work.
        first: Parameters to try after the paper's defaults.
        commit: Returns once what Optuna's storage holds cannot be lost any more.
    """

    name: str
    base: RunConfig
    space: Space
    config: StudyConfig
    storage: BaseStorage
    stored_name: str
    savepoints: str
    first: Sequence[Mapping[str, Value]] = ()
    commit: Callable[[], None] = lambda: None


class StudyListener(Protocol):
    """Who wants to know what happens in a study. Called in the driver, and not to be waited for."""

    def trial_restored(self, trial: TrialRecord, scores: Mapping[int, Mapping[str, float]]) -> None:
        """A trial was over before the search was resumed.

        Args:
            trial: The trial.
            scores: Validation Mem, For and H after each of its epochs.
        """

    def trial_started(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial is about to run, or to go on."""

    def epoch_ended(self, number: int, report: EpochReport, replayed: bool) -> None:
        """A trial has finished an epoch; replayed if that was before the search was resumed."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over."""

    def trial_suspended(self, number: int) -> None:
        """A trial was interrupted, and will go on if the search is resumed."""


class StudySearch(Searcher):
    """One study, as Ray Tune's searcher.

    Args:
        study: The study.
        listener: Is told what happens.
        executors: What its trials may use.
    """

    def __init__(self, study: Study, listener: StudyListener, executors: Share) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._study = study
        self._listener = listener
        self._executors = executors
        self._started_at = time.monotonic()
        self._live: dict[str, _LiveTrial] = {}
        self._moves: dict[int, int] = {}
        self.overheads_s: dict[int, list[float]] = {}
        self.ended_by: EndedBy = "trials"
        # Tune takes an exception of a searcher's for its trial's and goes on: see `_watched`.
        self.exception: Exception | None = None
        objectives = 1 if study.config.objective == "h" else 2
        self._optuna = optuna.create_study(
            study_name=study.stored_name,
            storage=study.storage,
            directions=["maximize"] * objectives,
            load_if_exists=True,
        )
        self._mend()
        self.records: list[TrialRecord] = []
        for trial in self._trials():
            if RECORD in trial.user_attrs:
                self.records.append(_record(trial))
                listener.trial_restored(self.records[-1], stored_scores(trial.user_attrs))
        if not self._trials():
            self._enqueue()

    @property
    def n_left(self) -> int:
        """Trials that have not begun."""
        left = self._study.config.trials - len(self.records) - len(self._live)
        if self._study.config.sampler == "grid":
            left = min(left, len(self._trials(TrialState.WAITING)))
        return max(left, 0)

    def curves(self) -> list[dict[int, float]]:
        """H after each epoch of every finished trial."""
        return [
            {epoch: scores["h"] for epoch, scores in stored_scores(trial.user_attrs).items()}
            for trial in self._trials()
            if RECORD in trial.user_attrs
        ]

    # What Tune calls.

    def suggest(self, trial_id: str) -> Any:
        """Proposes the next trial, or the one that is to go on, if there is an executor for it."""
        executors = self._executors
        if not executors.interrupted and len(self._live) >= len(executors):
            return None
        if executors.interrupted or self.n_left == 0 or self._is_over():
            executors.give_up()
            # Tune asks no more once it is told the end, and what runs may yet lose its executor.
            return None if self._live and not executors.interrupted else Searcher.FINISHED
        lease = executors.try_lease(0.0 if self._live else TURN_S)
        if lease is None:
            return None
        study = self._study
        self._optuna.sampler = self._sampler()
        trial = self._optuna.ask()
        params = suggest(trial, study.space, study.base)
        # Before it can leave a savepoint, which is that of its number.
        study.commit()
        live = self._live[trial_id] = _LiveTrial(trial, params, lease)
        self._listener.trial_started(trial.number, params)
        # From here, so that it trains while Tune finds it a client, or starts one.
        lease.start(self._command(live))
        return trial_config(live.run_id(study.name), lease.index)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps an epoch after which the trial goes on."""
        with self._watched():
            self._keep(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Closes a trial that is done, was stopped or has failed."""
        # After an exception Tune says that the trial failed; it waits for a resumption.
        if trial_id in self._live and self.exception is None:
            with self._watched():
                self._complete(trial_id, result)

    def suspend_running(self) -> None:
        """Has the trials that did not come to an end wait for the search to be resumed."""
        for live in self._live.values():
            live.lease.release(self._study.name)
            self._listener.trial_suspended(live.trial.number)
        self._live.clear()
        self._mend()

    def close(self) -> None:
        """Ends the study: what still waits will never run."""
        for trial in self._trials(TrialState.WAITING):
            self._study.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            self._optuna.tell(trial.number, state=TrialState.FAIL)
        self._study.commit()

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: Optuna's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing: Optuna's storage has it all."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it would need for its own way of resuming, which is not ours.
        return Searcher, ()

    # Helpers.

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Remembers an exception, for `run_study` to raise."""
        try:
            yield
        except Exception as error:
            self.exception = self.exception or error
            raise

    def _complete(self, trial_id: str, result: dict[str, Any] | None) -> None:
        live = self._live[trial_id]
        if result:
            self._keep(trial_id, result)
        live.lease.release(self._study.name)
        event: Event | None = (result or {}).get("event")
        if event is not None and event.kind == "interrupted" and self._executors.interrupted:
            return
        cut_off = event is not None and event.kind in ("lost", "interrupted")
        if cut_off and self._moves_on(trial_id):
            return
        failure = None
        if event is None:
            failure = "the trial's client process died"
        elif cut_off:
            failure = f"its executor was lost {MAX_RESTARTS + 1} times"
        elif event.kind == "failed":
            failure = event.error
        record = self._record(live, failure)
        if failure is None:
            overheads_s = self.overheads_s.setdefault(live.lease.index, [])
            overheads_s.append(record.wall_s - record.loop_s)
        del self._live[trial_id]
        live.trial.set_user_attr(RECORD, json.dumps(asdict(record)))
        self._tell(live.trial.number, record)
        self._study.commit()
        # Until here it could have gone on from there. One that is left is never read.
        with contextlib.suppress(UserError):
            storage.remove(self._savepoint(record.number))
        self.records.append(record)
        self._listener.trial_ended(record)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False, states=states or None)

    def _command(self, live: _LiveTrial) -> Command:
        return Command(
            live.run_id(self._study.name),
            configure(self._study.base, live.params).model_dump(mode="json", by_alias=True),
            savepoint=self._savepoint(live.trial.number),
        )

    def _savepoint(self, number: int) -> str:
        return storage.join(self._study.savepoints, str(number))

    def _sampler(self) -> optuna.samplers.BaseSampler:
        config, name = self._study.config, self._study.name
        # Studies differ in their random trials, and trials too, whoever asks for them.
        seed = config.seed + zlib.crc32(name.encode()) + 7919 * len(self._trials())
        conditional = any(parameter.when for parameter in self._study.space.values())
        return make_sampler(config.sampler, seed % 2**32, config.startup_trials, conditional)

    def _is_over(self) -> bool:
        """Whether a budget is spent; there is always one trial."""
        config, records = self._study.config, self.records
        if not records or self.ended_by != "trials":
            return self.ended_by != "trials"
        judged = config.target_h is not None or config.patience is not None
        best = best_trial(records) if judged else None
        if config.target_h is not None and best and best.val and best.val.h >= config.target_h:
            self.ended_by = "target H"
        elif config.patience is not None and _trials_since_best(records) >= config.patience:
            self.ended_by = "patience"
        elif (
            config.wall_time_s is not None
            and time.monotonic() - self._started_at >= config.wall_time_s
        ):
            self.ended_by = "wall time"
        return self.ended_by != "trials"

    def _moves_on(self, trial_id: str) -> bool:
        """Has a trial that has lost its executor wait for another; False if it did too often."""
        live = self._live[trial_id]
        number = live.trial.number
        self._moves[number] = self._moves.get(number, 0) + 1
        if self._moves[number] > MAX_RESTARTS:
            return False
        del self._live[trial_id]
        self._listener.trial_suspended(number)
        self._study.storage.set_trial_state_values(live.trial._trial_id, TrialState.WAITING)
        return True

    def _mend(self) -> None:
        """Brings trials that nobody runs any more into a state to go on from."""
        for trial in self._trials(TrialState.RUNNING):
            if RECORD in trial.user_attrs:
                # Killed within the last step of its end.
                self._tell(trial.number, _record(trial))
            else:
                self._study.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _enqueue(self) -> None:
        """Enqueues what is tried before the sampler is asked."""
        study = self._study
        first = [defaults(study.space), *(fit(study.space, params) for params in study.first)]
        if study.config.sampler == "grid":
            combinations = grid(study.space, study.base, study.config.grid_points)
            first += itertools.islice(combinations, study.config.trials)
        # A range's value is the same as a whole number and with a decimal point.
        distinct = {tuple(sorted(values.items())): values for values in first}
        for values in list(distinct.values())[: study.config.trials]:
            self._optuna.enqueue_trial(searched(study.space, values))

    def _keep(self, trial_id: str, result: Mapping[str, Any]) -> None:
        live = self._live[trial_id]
        event: Event = result["event"]
        if event.epoch is None:
            return
        for epoch in event.before:
            self._keep_epoch(live, epoch_report(epoch), replayed=True)
        report = epoch_report(event.epoch)
        # The epoch that a resumed run begins with was reported before, if not to everybody.
        self._keep_epoch(live, report, replayed=bool(event.before) or report.epoch in live.known)

    def _keep_epoch(self, live: _LiveTrial, report: EpochReport, replayed: bool) -> None:
        live.report = report
        if not replayed:
            live.loop_s += report.train_s + report.val_s
            # It does not kill its executors: see `Lease.advance`.
            self._moves.pop(live.trial.number, None)
        if report.epoch not in live.known:
            # Optuna takes intermediate values of one objective only.
            if self._study.config.objective == "h":
                live.trial.report(report.val.h, report.epoch)
            live.trial.set_user_attr(f"{SCORES}{report.epoch}", report.val.as_dict())
            live.known.add(report.epoch)
        self._listener.epoch_ended(live.trial.number, report, replayed)

    def _record(self, live: _LiveTrial, failure: str | None) -> TrialRecord:
        now = time.time()
        # What an executor does between two trials of a study is overhead of the later one.
        lease = live.lease
        began = lease.free_since if lease.previous == self._study.name else lease.taken_at
        report = live.report
        state: Literal["complete", "stopped", "failed"] = "stopped"
        if failure is not None:
            state = "failed"
        elif report is not None and report.epoch == report.epochs:
            state = "complete"
        return TrialRecord(
            number=live.trial.number,
            params=live.params,
            epochs_done=report.epoch if report else 0,
            state=state,
            val=report.val if report else None,
            wall_s=now - began,
            loop_s=live.loop_s,
            error=failure,
        )

    def _tell(self, number: int, record: TrialRecord) -> None:
        if record.state == "complete":
            assert record.val is not None
            val = record.val
            values = [val.h] if self._study.config.objective == "h" else [val.mem, val.for_]
            self._optuna.tell(number, values)
        elif record.state == "stopped":
            # Optuna takes the last of the intermediate values.
            self._optuna.tell(number, state=TrialState.PRUNED)
        else:
            self._optuna.tell(number, state=TrialState.FAIL)


@dataclass
class _LiveTrial:
    trial: optuna.Trial
    params: dict[str, Any]
    lease: Lease
    loop_s: float = 0.0
    report: EpochReport | None = None
    known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        # A trial that goes on has epochs that Optuna knows.
        self.known = set(stored_scores(self.trial.user_attrs))

    def run_id(self, study: str) -> str:
        return f"{study}/{self.trial.number}"


def stored_scores(attributes: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Validation Mem, For and H after each epoch, out of a trial's attributes in Optuna."""
    return {
        int(name.removeprefix(SCORES)): scores
        for name, scores in attributes.items()
        if name.startswith(SCORES)
    }


def _trials_since_best(records: Sequence[TrialRecord]) -> int:
    best = best_trial(records)
    ended = [record for record in records if record.state != "failed"]
    return len(ended) - 1 - ended.index(best) if best in ended else 0


def _record(trial: FrozenTrial) -> TrialRecord:
    values = json.loads(trial.user_attrs[RECORD])
    return TrialRecord(**{**values, "val": Scores(**values["val"]) if values["val"] else None})
