"""Ray Train's data-parallel trainer, as executors use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.executors.resources import ResourcesConfig


class GroupTrainer(DataParallelTrainer):
    """A group of workers that leaves torch to them.

    A ``TorchTrainer`` would have its caller and its controller import torch, for the name of a
    class.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # Ray would keep a process of 110 MB on the head for each run, which removes the run's
        # placement group if its controller is killed. The driver does that: see `Groups`.
        kept = super()._create_default_callbacks()
        return [each for each in kept if type(each).__name__ != "PlacementGroupCleanerCallback"]


def run_workers(work: Callable[[], None], resources: ResourcesConfig, folder: str) -> None:
    """Runs an executor's workers until they leave or one of them is lost.

    Args:
        work: What each of them does.
        resources: What they get.
        folder: For Ray Train's own files.

    Raises:
        Exception: If a worker has died or raised.
    """
    n = resources.workers_per_trial
    GroupTrainer(
        work,
        scaling_config=ScalingConfig(
            # None: in this process, which has a worker's resources itself.
            num_workers=n if n > 1 else 0,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.per_worker,
        ),
        # Whoever has lost its workers is replaced as a whole.
        run_config=RunConfig(
            name="executor", storage_path=folder, failure_config=FailureConfig(max_failures=0)
        ),
    ).fit()
