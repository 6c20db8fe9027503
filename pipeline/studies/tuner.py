"""Runs a queue to its end with Ray Tune: one Tuner a job."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from pipeline.executors.executor import Executor, ExecutorSetup
from pipeline.studies.queue import RunQueue
from pipeline.studies.rules import Rules

# Tune would hand these on in the runtime environment of every trial, which Ray writes to its logs.
# Nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
)


class JobEndedError(Exception):
    """Leaves Tune in the middle of what it does: nothing of it is needed any more."""


def run_queue(queue: RunQueue, rules: Rules, setup: ExecutorSetup, head: str | None = None) -> None:
    """Runs what a queue gives, until it has no more or is ending.

    Args:
        queue: The runs.
        rules: What stops trials early.
        setup: What the executors are.
        head: Ray's id of a node that no executor is to burden.

    Raises:
        Exception: What has ended the queue before its time.
    """
    # Workers that wait for room would ask for it anew, and be behind others, every minute.
    timeout_s = str(setup.resources.start_timeout_s)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", timeout_s)
    try:
        with tempfile.TemporaryDirectory(prefix="adu-tune-") as folder:
            _tuner(queue, rules, setup, head, folder).fit()
    except Exception:
        if not queue.ending:
            raise
    finally:
        queue.suspend()
    if queue.exception is not None:
        raise queue.exception


class _Callback(tune.Callback):
    """Passes on what Tune tells."""

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue

    def on_trial_start(self, iteration: int, trials: Any, trial: Trial, **_: Any) -> None:
        """A trial has its executor."""
        self._queue.started(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Tune has dealt with an event."""
        self._queue.deliver()

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.Callback, ()


class _Stopper(tune.Stopper):
    """Ends Tune at once when the queue is ending.

    Tune's own way would wait for every epoch in flight, and tell the rules that trials were
    stopped that are to go on.
    """

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether all are to end."""
        if self._queue.ending:
            raise JobEndedError
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.stopper.NoopStopper, ()


def _tuner(
    queue: RunQueue, rules: Rules, setup: ExecutorSetup, head: str | None, folder: str
) -> tune.Tuner:
    # An executor beside a group of workers asks for no core, so that it would fit on any head.
    elsewhere = [{"ray.io/node-id": f"!{head}"}] if head else None
    request = tune.PlacementGroupFactory(
        [setup.resources.of_executor], bundle_label_selector=elsewhere
    )
    executor = tune.with_resources(tune.with_parameters(Executor, setup=setup), request)
    return tune.Tuner(
        executor,
        tune_config=tune.TuneConfig(
            search_alg=queue,
            scheduler=rules,
            # The queue knows when it is over, and how many runs there are executors for.
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="job",
            storage_path=folder,
            verbose=0,
            stop=_Stopper(queue),
            callbacks=[_Callback(queue)],
            # Runs keep their own state, and the queue has those go on that lose their executor.
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def _name(trial: Trial) -> str:
    return str(trial.trial_id)
