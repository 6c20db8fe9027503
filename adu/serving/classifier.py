"""A trained model as whoever uses it sees it: images in, class scores out.

Needs the checkpoint and the backbone that it names, and no manifest.

Tensor names carry their shape: B images, C classes, E feature width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from adu import storage
from adu.data.decoded import ImageSet, batches_of, eval_batch
from adu.data.images import decode_image
from adu.data.opening import picture
from adu.data.preprocess import view
from adu.evaluation.evaluate import EVAL_BATCH_SIZE
from adu.methods import Output
from adu.serving.model import UnlearnedModel, load_model


class Classifier:
    """A checkpoint on its backbone.

    Images are the bytes of files in any of `adu.data.images.FORMATS`, paths or URLs of such, arrays
    of uint8 (height, width, channels), or Pillow's.

    Args:
        model: File or URL of a checkpoint, or a model that is there already.
        backbone: Where the checkpoint's backbone is, if not where it says.
        device: Where to compute, for a checkpoint.

    Attributes:
        classes: Names of the classes, in the order of the scores.

    Raises:
        UserError: If the checkpoint or its backbone cannot be read, or is another than the one
            that the checkpoint was trained on.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | UnlearnedModel,
        backbone: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(model, UnlearnedModel):
            model = load_model(os.fspath(model), backbone, device)
        self._model = model.eval()
        self.classes = model.classes

    def scores(self, images: Sequence[Any]) -> np.ndarray:
        """Class scores_BC of images, as probabilities.

        Raises:
            UserError: Naming the image, if it cannot be read or decoded.
        """
        shares = [output.logits_BC.float().softmax(dim=-1) for output in self._outputs(images)]
        return _joined(shares, len(self.classes))

    def features(self, images: Sequence[Any]) -> np.ndarray:
        """Unit-length features_BE of images.

        Raises:
            UserError: Naming the image, if it cannot be read or decoded.
        """
        shares = [output.features_BE for output in self._outputs(images)]
        return _joined(shares, self._model.text_CE.shape[1])

    @torch.no_grad()
    def _outputs(self, images: Sequence[Any]) -> Iterator[Output]:
        transform = self._model.transform
        # A view each: the images whole might not fit into memory.
        views = [view(_decoded(image, str(i)), transform) for i, image in enumerate(images)]
        names, nothing = [str(i) for i in range(len(views))], [0] * len(views)
        prepared = ImageSet(views, names, nothing, nothing)
        for batch in batches_of(prepared, EVAL_BATCH_SIZE):
            yield self._model(eval_batch(prepared, batch, transform, self._model.device))


def _decoded(image: Any, name: str) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        image = storage.read_bytes(name)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), name)
    return picture(image, name)


def _joined(shares: list[torch.Tensor], width: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, width), np.float32), *(s.cpu().numpy() for s in shares)])
