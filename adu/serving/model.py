"""A trained model with its backbone: an ordinary module, images in, class scores out.

Tensor names carry their shape: B images, C classes, E feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adu import storage
from adu.evaluation.metrics import Scores
from adu.methods import Method, Output, Task
from adu.models.backbone import Backbone
from adu.models.openclip import load_backbone
from adu.training.checkpoint import Card, read_card, rebuild, serialised
from adu.training.trainer import EpochReport


class UnlearnedModel(nn.Module):
    """A CLIP that has unlearned domains.

    All that it needs to classify is in its module tree: it moves, is copied and saved like any
    other module. Models that were trained on one backbone share it.

    Args:
        method: What was trained.
        card: What is said of it.
        scores: On the test images.
        history: What each epoch gave.

    Attributes:
        clip: The frozen open_clip model.
        method: What was trained on it.
        card: Classes, domains, the run and more.
        scores: Mem, For and H on the test images; None after loading.
        history: A report an epoch; empty after loading.
    """

    text_CE: Tensor

    def __init__(
        self,
        method: Method,
        card: Card,
        scores: Scores | None = None,
        history: Sequence[EpochReport] = (),
    ) -> None:
        super().__init__()
        self.clip = method.backbone.clip
        self.method = method
        self.card = card
        self.scores = scores
        self.history = tuple(history)
        with torch.no_grad():
            # Nothing changes it any more.
            self.register_buffer("text_CE", method.text_features().detach().clone())
        self.transform = method.backbone.transform
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        return self.card.classes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.text_CE.device

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Unit-length features_BE of prepared images."""
        return F.normalize(self.method.image_features(images_BCHW).float(), dim=-1)

    def forward(self, images_BCHW: Tensor) -> Output:
        """Classifies prepared images."""
        features_BE = self.features(images_BCHW)
        text_CE = self.text_CE.float()
        logits_BC = self.method.class_logits(features_BE, text_CE)
        return Output(logits_BC, features_BE, text_CE)


def load_model(
    url: str, backbone: str | None = None, device: str | torch.device = "cpu"
) -> UnlearnedModel:
    """Loads a checkpoint with the backbone that it was trained on.

    Args:
        url: File or URL of the checkpoint.
        backbone: Where the backbone is, if not where the checkpoint says.
        device: Where to compute.

    Raises:
        UserError: If the checkpoint or its backbone cannot be read, or is another than the one
            that the checkpoint was trained on.
    """
    data = storage.read_bytes(url)
    card = read_card(data, url)
    config = card.backbone
    if backbone is not None:
        config = config.model_copy(update={"name": backbone})
    return assemble(data, url, card, load_backbone(config, torch.device(device)))


def assemble(data: bytes, source: str, card: Card, backbone: Backbone) -> UnlearnedModel:
    """Puts a checkpoint on its backbone.

    Args:
        data: The checkpoint.
        source: Where it comes from, for messages.
        card: Its card.
        backbone: The frozen model.

    Raises:
        UserError: If it is broken, or was trained on another backbone.
    """
    text_CE = backbone.text_features(card.classes, card.backbone.template)
    task = Task(card.classes, card.domains, card.run.forget, text_CE, card.backbone.template)
    return UnlearnedModel(rebuild(data, source, card, backbone, task), card)


def save_model(model: UnlearnedModel, url: str) -> None:
    """Writes a checkpoint: what was trained, and the name of its backbone.

    Raises:
        UserError: If it cannot be written.
    """
    storage.write_bytes(url, serialised(model.method, model.card))
