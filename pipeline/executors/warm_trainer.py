"""Ray's TorchTrainer, as executors use it.

Apart from `pipeline.executors.pool`, because trial clients import that one and need no torch.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback


class WarmTrainer(TorchTrainer):
    """A TorchTrainer that starts and ends with its workers alone.

    Ray 2.60 starts two more actors beside every run. One removes the run's placement group if the
    run's controller dies, and is waited for in vain for 12 s at the end; executors live as long as
    their job, with which Ray removes the group as well. The other hands out Ray datasets, of which
    there are none here, and imports Ray Data for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        superfluous = (PlacementGroupCleanerCallback, DatasetsCallback)
        kept = [each for each in callbacks if not isinstance(each, superfluous)]
        return [*kept, _NoDatasets()]


class _NoDatasets(WorkerGroupCallback):
    """Tells workers that there are no Ray datasets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[None]]:
        return {"dataset_shard_provider": [None] * len(workers)}
