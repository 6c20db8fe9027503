"""A trained model as whoever uses it sees it: image files in, class scores out.

Needs the checkpoint and the backbone that it names, and no manifest.

Tensor names carry their shape: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adu import storage
from adu.data.decoded import ImageSet, batches_of, eval_batch
from adu.data.images import decode_image
from adu.data.preprocess import view
from adu.evaluation.evaluate import EVAL_BATCH_SIZE
from adu.methods import Task
from adu.models.openclip import load_backbone
from adu.training.checkpoint import read_card, rebuild


class Classifier:
    """A checkpoint on its backbone.

    Args:
        checkpoint: File or URL of a checkpoint.
        backbone: Where the backbone is, if not where the checkpoint says.
        device: Where to compute.

    Attributes:
        classes: Names of the classes, in the order of the scores.

    Raises:
        UserError: If the checkpoint or its backbone cannot be read, or is another than the one
            that the checkpoint was trained on.
    """

    def __init__(
        self, checkpoint: str, backbone: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        data = storage.read_bytes(checkpoint)
        card = read_card(data, checkpoint)
        config = card.backbone
        if backbone is not None:
            config = config.model_copy(update={"name": backbone})
        self._device = torch.device(device)
        clip = load_backbone(config, self._device)
        self.classes = card.classes
        text_CE = clip.text_features(self.classes, config.template)
        task = Task(self.classes, card.domains, card.run.forget, text_CE, config.template)
        self._model = rebuild(data, checkpoint, card, clip, task).eval()
        self._transform = clip.transform

    @torch.no_grad()
    def scores(self, files: Sequence[bytes]) -> np.ndarray:
        """Class scores_BC, as probabilities, of image files in any of `adu.data.images.FORMATS`.

        Raises:
            UserError: Naming the image, if it cannot be decoded.
        """
        # A view each: the images whole might not fit into memory.
        views = [view(decode_image(data, str(i)), self._transform) for i, data in enumerate(files)]
        names, nothing = [str(i) for i in range(len(files))], [0] * len(files)
        images = ImageSet(views, names, nothing, nothing)
        shares = [np.zeros((0, len(self.classes)), np.float32)]
        for batch in batches_of(images, EVAL_BATCH_SIZE):
            images_BCHW = eval_batch(images, batch, self._transform, self._device)
            logits_BC = self._model(images_BCHW).logits_BC
            shares.append(logits_BC.float().softmax(dim=-1).cpu().numpy())
        return np.concatenate(shares)
