"""Ray's TorchTrainer, as executors use it.

Apart from `pipeline.executor`, because trial clients import that one and need no torch.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class WarmTrainer(TorchTrainer):
    """A TorchTrainer that ends as soon as its workers have.

    Ray 2.60 starts a detached actor beside every run, which removes the run's placement group if
    the run's controller dies, and waits 12 s for it in vain at the end. Executors live as long as
    their job, with which Ray removes the group as well.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]
