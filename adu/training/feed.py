"""The images of training steps, made while the step before them runs.

Tensor names carry their shape: B images of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from adu.data.decoded import ImageSet, ImageTransform, train_batch
from adu.data.prefetch import ahead
from adu.distributed import rank_and_world_size, rank_slice


class Feed:
    """Gives a worker its share of one global batch after another.

    The first batch of an epoch is made during the validation before it.

    Args:
        images: The training images.
        batches: The image numbers of an epoch's batches, given its number.
        epochs: How many epochs there are.
        transform: How the model wants its images.
        seed: Of the augmentation.
        device: Where they are augmented, and wanted.
    """

    def __init__(
        self,
        images: ImageSet,
        batches: Callable[[int], list[Tensor]],
        epochs: int,
        transform: ImageTransform,
        seed: int,
        device: torch.device,
    ) -> None:
        self._images = images
        self._batches = batches
        self._epochs = epochs
        self._transform = transform
        self._seed = seed
        self._device = device

    def start(self, epoch: int) -> Iterator[Tensor]:
        """The images of every step from an epoch on."""
        steps = (
            (number, rows_B.tolist())
            for number in range(epoch, self._epochs)
            for rows_B in self._batches(number)
        )
        return ahead(steps, lambda step: self._make(*step))

    def _make(self, epoch: int, rows: list[int]) -> Tensor:
        own = rows[rank_slice(len(rows), *rank_and_world_size())]
        return train_batch(
            self._images, own, self._transform, seed=self._seed, epoch=epoch, device=self._device
        )
