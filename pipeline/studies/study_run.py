"""One study: Ray Tune and Optuna search the options of one forget set on warm executors."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from pipeline.executors.sharing import Share
from pipeline.studies.records import TrialRecord
from pipeline.studies.searcher import METRIC, EndedBy, Study, StudyListener, StudySearch
from pipeline.studies.trial import TrialClient

TRAINABLE = "adu-trial"

# More than a search ever has executors. Tune starts so many of its clients at the same time.
MOST_TRIALS_AT_ONCE = 10_000

# Tune would hand these on in the runtime environment of every trial, which Ray writes to its logs.
# Trials have no use for them.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
)


@dataclass(frozen=True)
class StudyRun:
    """What came of a study's trials.

    Attributes:
        trials: All finished trials, those of earlier sessions included.
        overheads_s: Of this session's trials that did not fail, by executor and in order: wall
            time less the time inside the training loop.
        ended_by: The budget that was spent.
    """

    trials: list[TrialRecord]
    overheads_s: dict[int, list[float]]
    ended_by: EndedBy


def register_trials(mailboxes: Any) -> None:
    """Makes trials known to Tune, once: its registry is not made for several threads.

    Args:
        mailboxes: Handle of the actor that holds the executors' mailboxes.
    """
    tune.register_trainable(TRAINABLE, tune.with_parameters(TrialClient, mailboxes=mailboxes))


def run_study(
    study: Study, executors: Share, listener: StudyListener, stop: threading.Event
) -> StudyRun:
    """Runs the trials that a study still lacks, after `register_trials`.

    Args:
        study: What to search.
        executors: Where; as many trials run at once as it gives, which may change on the way.
        listener: Is told what happens.
        stop: Ends the study soon after it is set; what ran then waits for a resumption.

    Raises:
        UserError: If the study's storage cannot be written any more.
    """
    search = StudySearch(study, listener, executors)
    if search.n_left > 0 and not stop.is_set():
        with tempfile.TemporaryDirectory(prefix="adu-tune-") as folder:
            _tuner(study, search, stop, folder).fit()
    search.suspend_running()
    if search.exception is not None:
        raise search.exception
    if not stop.is_set() and not executors.interrupted:
        search.close()
    return StudyRun(search.records, search.overheads_s, search.ended_by)


class StudyStopper(tune.Stopper):
    """Ends all trials once the search is interrupted, or cannot keep what they give."""

    def __init__(self, stop: threading.Event, search: StudySearch) -> None:
        self._stop = stop
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to end."""
        return self.stop_all()

    def stop_all(self) -> bool:
        """Whether all are."""
        return self._stop.is_set() or self._search.exception is not None

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it would need for its own way of resuming, which is not ours.
        return tune.stopper.NoopStopper, ()


def _tuner(study: Study, search: StudySearch, stop: threading.Event, folder: str) -> tune.Tuner:
    return tune.Tuner(
        TRAINABLE,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=make_scheduler(study, search.curves()),
            # The search knows when it is over, and how many trials there are executors for.
            num_samples=-1,
            max_concurrent_trials=MOST_TRIALS_AT_ONCE,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=folder,
            verbose=0,
            stop=StudyStopper(stop, search),
            # There is nothing to save: a trial's state is its executor's.
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )


def make_scheduler(study: Study, curves: Sequence[Mapping[int, float]]) -> TrialScheduler:
    """What stops trials early, having seen those that ended before the search was resumed.

    Args:
        study: The study.
        curves: H after each epoch of every finished trial.
    """
    config, epochs = study.config, study.base.train.epochs
    grace_epochs = min(config.grace_epochs, epochs)
    scheduler: TrialScheduler
    if config.scheduler == "none":
        return _NoRule()
    # By epoch, not by Tune's own count of results, which would start again after a restart.
    if config.scheduler == "median":
        scheduler = _MedianRule(
            time_attr="epoch", metric=METRIC, mode="max", grace_period=grace_epochs
        )
    else:
        scheduler = _SuccessiveHalving(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            max_t=epochs,
            grace_period=grace_epochs,
            reduction_factor=config.reduction_factor,
        )
    for number, curve in enumerate(curves):
        _replay(scheduler, _Earlier(f"earlier-{number}"), curve)
    return scheduler


class _InOrder:
    """Leaves it to Tune to start trials in their order.

    Ray's rules look for the next one among all trials that ever were, at every event.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


class _NoRule(_InOrder, FIFOScheduler):
    """Stops nothing."""


class _SuccessiveHalving(_InOrder, AsyncHyperBandScheduler):
    """Ray's ASHA."""


class _MedianRule(_InOrder, MedianStoppingRule):
    """Ray's rule, which pauses no trial while there are few others to compare it with."""

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return TrialScheduler.CONTINUE


@dataclass(frozen=True)
class _Earlier:
    """A trial of an earlier session, as much as a scheduler needs of it."""

    trial_id: str


def _replay(scheduler: Any, trial: _Earlier, curve: Mapping[int, float]) -> None:
    scheduler.on_trial_add(None, trial)
    results = [{"epoch": epoch, METRIC: h} for epoch, h in sorted(curve.items())]
    for result in results:
        if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            break
    if results:
        scheduler.on_trial_complete(None, trial, results[-1])
