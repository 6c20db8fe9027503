"""One study: Ray Tune and Optuna search the options of one forget set on warm executors."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from adu.config import StrictModel
from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig
from pipeline.executor import Executors
from pipeline.mailbox import Event
from pipeline.session import epoch_report
from pipeline.space import Space, defaults, distributions
from pipeline.summary import TrialRecord
from pipeline.trial import TrialClient

METRIC = "h"

# Clients run beside the driver and need no core: the executors have them all.
CLIENT_RESOURCES = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])


class StudyConfig(StrictModel):
    """How each study searches."""

    trials: int = Field(20, ge=1, description="trials of a study, the paper's defaults included")
    sampler: Literal["tpe"] = Field("tpe", description="how Optuna proposes")
    startup_trials: int = Field(5, ge=1, description="random trials before the sampler learns")
    seed: int = Field(0, ge=0, description="of the sampler")
    grace_epochs: int = Field(5, ge=1, description="epochs before a trial may be stopped")
    reduction_factor: float = Field(
        3.0, gt=1, description="of the trials at a rung, the best 1/factor go on (ASHA)"
    )


@dataclass(frozen=True)
class Study:
    """What one study is about.

    Attributes:
        name: Unique in the search; part of file names.
        base: The run's configuration, forget set included, apart from what is searched.
        space: What is searched.
        config: How.
        journal: File of Optuna's storage, shared by the studies of a search.
    """

    name: str
    base: RunConfig
    space: Space
    config: StudyConfig
    journal: Path


class StudyListener(Protocol):
    """Who wants to know what happens in a study. Called in the driver, and not to be waited for."""

    def trial_started(self, number: int, trial_id: str, params: Mapping[str, Any]) -> None:
        """A trial is about to run."""

    def epoch_ended(self, trial_id: str, report: EpochReport) -> None:
        """A trial has finished an epoch."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over."""

    def trial_abandoned(self, trial_id: str) -> None:
        """A trial was interrupted and does not count."""


@dataclass(frozen=True)
class StudyRun:
    """What came of a study's trials.

    Attributes:
        trials: All finished trials, those of earlier sessions included.
        overheads_s: Of this session's trials that did not fail, by executor and in order: wall
            time less the time inside the training loop.
    """

    trials: list[TrialRecord]
    overheads_s: dict[int, list[float]]


def run_study(
    study: Study, executors: Executors, listener: StudyListener, stop: threading.Event
) -> StudyRun:
    """Runs the trials that a study still lacks.

    Args:
        study: What to search.
        executors: Where; as many trials run at once as there are executors.
        listener: Is told what happens.
        stop: Ends the study soon after it is set; what ran then does not count.
    """
    search = StudySearch(study, listener)
    n_left = study.config.trials - len(search.records)
    if n_left > 0 and not stop.is_set():
        with tempfile.TemporaryDirectory(prefix="adu-tune-") as folder:
            _tuner(study, search, executors, n_left, stop, folder).fit()
    search.abandon_running()
    return StudyRun(search.records, search.overheads_s)


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the best validation H: among complete ones, else among stopped ones."""
    for state in ("complete", "stopped"):
        candidates = [trial for trial in trials if trial.state == state and trial.val]
        if candidates:
            return max(candidates, key=lambda trial: trial.val.h if trial.val else 0.0)
    return None


class StudySearch(OptunaSearch):
    """Ray's Optuna searcher without its faults in studies that stop trials early.

    A trial that the scheduler stops is PRUNED with all its intermediate values; Ray's own tells
    it COMPLETE with its last value, which makes short trials look like full ones to the sampler.
    The first trial is enqueued once, also when the study is opened again. Trials left RUNNING by
    a killed driver become FAIL.

    The record of each finished trial is kept in Optuna's storage, so that the storage alone is
    enough to go on.
    """

    _ot_study: Any

    def __init__(self, study: Study, listener: StudyListener) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(JournalFileBackend(str(study.journal)))
        super().__init__(
            space=distributions(study.space, study.base),
            metric=METRIC,
            mode="max",
            study_name=study.name,
            storage=storage,
            sampler=_sampler(study, storage),
        )
        self._study = study
        self._listener = listener
        self._live: dict[str, _LiveTrial] = {}
        self._last_end: dict[int, float] = {}
        self.overheads_s: dict[int, list[float]] = {}
        self.abandon_running()
        self.records = _stored_records(self._ot_study.get_trials(deepcopy=False))
        self._enqueue_defaults()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Proposes the next trial's parameters."""
        params = super().suggest(trial_id)
        trial = self._ot_trials[trial_id]
        self._live[trial_id] = _LiveTrial(trial.number, dict(trial.params))
        self._listener.trial_started(trial.number, trial_id, trial.params)
        return params

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps an epoch after which the trial goes on."""
        self._keep(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Closes a trial that is done, was stopped or has failed."""
        live = self._live.get(trial_id)
        if live is None:
            return
        if result:
            self._keep(trial_id, result)
        event: Event | None = (result or {}).get("event")
        if event is not None and event.kind == "interrupted":
            return
        failure = event.error if event is not None else "the trial's client process died"
        record = self._record(trial_id, live, failure)
        if failure is None:
            overheads_s = self.overheads_s.setdefault(live.executor, [])
            overheads_s.append(record.wall_s - record.loop_s)
        del self._live[trial_id]
        self._tell(trial_id, record)
        self.records.append(record)
        self._listener.trial_ended(record)

    def abandon_running(self) -> None:
        """Marks the trials that did not come to an end FAIL; they do not count."""
        for trial_id in self._live:
            self._listener.trial_abandoned(trial_id)
        self._live.clear()
        for trial in self._ot_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._ot_study.tell(trial.number, state=TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: Optuna's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing: Optuna's storage has it all."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it would need for its own way of resuming, which is not ours.
        return OptunaSearch, ()

    def _enqueue_defaults(self) -> None:
        first = defaults(self._study.space)
        for trial in self._ot_study.get_trials(deepcopy=False):
            enqueued = trial.state == TrialState.WAITING
            if enqueued or ("record" in trial.user_attrs and trial.params == first):
                return
        self._ot_study.enqueue_trial(first)

    def _keep(self, trial_id: str, result: Mapping[str, Any]) -> None:
        live = self._live[trial_id]
        live.executor = result["executor"]
        live.assigned_at = result["assigned_at"]
        event: Event = result["event"]
        if event.epoch is None:
            return
        live.report = epoch_report(event.epoch)
        live.loop_s += live.report.train_s + live.report.val_s
        self._ot_trials[trial_id].report(live.report.val.h, live.report.epoch)
        self._listener.epoch_ended(trial_id, live.report)

    def _record(self, trial_id: str, live: _LiveTrial, failure: str | None) -> TrialRecord:
        now = time.time()
        # What an executor does between two trials is overhead of the later one.
        began = self._last_end.get(live.executor, live.assigned_at)
        self._last_end[live.executor] = now
        report = live.report
        state: Literal["complete", "stopped", "failed"] = "stopped"
        if failure is not None:
            state = "failed"
        elif report is not None and report.epoch == report.epochs:
            state = "complete"
        return TrialRecord(
            trial_id=trial_id,
            number=live.number,
            params=live.params,
            epochs_done=report.epoch if report else 0,
            state=state,
            val=report.val if report else None,
            wall_s=now - began,
            loop_s=live.loop_s,
            error=failure,
        )

    def _tell(self, trial_id: str, record: TrialRecord) -> None:
        trial = self._ot_trials.pop(trial_id)
        trial.set_user_attr("record", json.dumps(asdict(record)))
        if record.state == "complete":
            assert record.val is not None
            self._ot_study.tell(trial, record.val.h)
        elif record.state == "stopped":
            # Optuna takes the last of the intermediate values.
            self._ot_study.tell(trial, state=TrialState.PRUNED)
        else:
            self._ot_study.tell(trial, state=TrialState.FAIL)


@dataclass
class _LiveTrial:
    number: int
    params: dict[str, Any]
    executor: int = -1
    assigned_at: float = 0.0
    loop_s: float = 0.0
    report: EpochReport | None = None


class _Stop(tune.Stopper):
    """Ends all trials once the search is interrupted."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._stop.is_set()

    def stop_all(self) -> bool:
        return self._stop.is_set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it would need for its own way of resuming, which is not ours.
        return tune.stopper.NoopStopper, ()


def _tuner(
    study: Study,
    search: StudySearch,
    executors: Executors,
    n_trials: int,
    stop: threading.Event,
    folder: str,
) -> tune.Tuner:
    client = tune.with_parameters(
        TrialClient,
        executors=executors,
        run=study.base.model_dump(mode="json", by_alias=True),
        study=study.name,
    )
    epochs = study.base.train.epochs
    scheduler = AsyncHyperBandScheduler(
        # Not Tune's own count of results, which would start again after a restart.
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=min(study.config.grace_epochs, epochs),
        reduction_factor=study.config.reduction_factor,
    )
    return tune.Tuner(
        tune.with_resources(client, CLIENT_RESOURCES),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=n_trials,
            max_concurrent_trials=len(executors),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=folder,
            verbose=0,
            stop=_Stop(stop),
            # There is nothing to save: a trial's state is its executor's.
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )


def _sampler(study: Study, storage: JournalStorage) -> BaseSampler:
    # Studies differ in their random trials, and one that is opened again does not repeat its own.
    known = {s.study_name: s._study_id for s in storage.get_all_studies()}
    n_trials = storage.get_n_trials(known[study.name]) if study.name in known else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=study.config.seed + zlib.crc32(study.name.encode()) + n_trials,
            n_startup_trials=study.config.startup_trials,
            multivariate=True,
            constant_liar=True,
        )


def _stored_records(trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
    stored = [json.loads(t.user_attrs["record"]) for t in trials if "record" in t.user_attrs]
    return [
        TrialRecord(**{**values, "val": Scores(**values["val"]) if values["val"] else None})
        for values in stored
    ]
