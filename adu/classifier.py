"""A trained model as whoever uses it sees it: image files in, class scores out.

Needs the checkpoint and the backbone that it names, and no manifest.

Tensor names carry their shape: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch

from adu import storage
from adu.backbone import BackboneConfig
from adu.checkpoint import read_card
from adu.data import ImageSet, eval_batch
from adu.images import decode_image
from adu.methods import Task, build_method
from adu.openclip import load_backbone
from adu.trainer import RunConfig

BATCH_SIZE = 64


class Classifier:
    """A checkpoint on its backbone.

    Args:
        checkpoint: File or URL of a checkpoint.
        backbone: Where the backbone is, if not where the checkpoint says.
        device: Where to compute.

    Attributes:
        classes: Names of the classes, in the order of the scores.

    Raises:
        UserError: If the checkpoint or its backbone cannot be read.
    """

    def __init__(
        self, checkpoint: str, backbone: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        data = storage.read_bytes(checkpoint)
        card = read_card(data, checkpoint)
        config = BackboneConfig.model_validate(card["backbone"])
        if backbone is not None:
            config = config.model_copy(update={"name": backbone})
        self._device = torch.device(device)
        clip = load_backbone(config, self._device)
        run = RunConfig.model_validate(card["run"])
        self.classes = tuple(card["classes"])
        text_CE = clip.text_features(self.classes, config.template)
        task = Task(self.classes, tuple(card["domains"]), run.forget, text_CE, config.template)
        self._model = build_method(run.method, clip, task)
        self._model.load_state_dict(safetensors.torch.load(data), strict=True)
        self._model.to(self._device).eval()
        self._transform = clip.transform

    @torch.no_grad()
    def scores(self, files: Sequence[bytes]) -> np.ndarray:
        """Class scores_BC, as probabilities, of image files in any format that Pillow reads.

        Raises:
            UserError: Naming the image, if it cannot be decoded.
        """
        pixels = [np.asarray(decode_image(data, str(i))) for i, data in enumerate(files)]
        names, nothing = [str(i) for i in range(len(files))], [0] * len(files)
        images = ImageSet(pixels, names, nothing, nothing)
        shares = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(files), BATCH_SIZE):
            rows = range(start, min(start + BATCH_SIZE, len(files)))
            images_BCHW = eval_batch(images, rows, self._transform).to(self._device)
            logits_BC = self._model(images_BCHW).logits_BC
            shares.append(logits_BC.float().softmax(dim=-1).cpu().numpy())
        return np.concatenate(shares)
