"""What is loaded once and then serves run after run: the frozen model and the decoded images.

Tensor names carry their shape: N images, B images of a batch, C classes, E feature
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adu.backbone import Backbone, BackboneConfig, load_backbone
from adu.config import StrictModel
from adu.data import DataConfig, ImageSet, eval_batch, read_images, select_images
from adu.errors import UserError
from adu.manifest import FewShotSplit, Manifest, load_manifest
from adu.methods import Task

# Decoded images keep at most this multiple of the model's input size on their short side: random
# crops down to 8 % of the area still find more pixels than a resize of the whole would leave.
STORED_SIZE_FACTOR = 2

FEATURE_BATCH_SIZE = 64


class ContextConfig(StrictModel):
    """The model and the data of a search; the same for all its runs."""

    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()


@dataclass
class Context:
    """A frozen model and the data that it is tuned on.

    Images of the few-shot split are read and decoded at first use and stay in memory. The test
    split is not here: it is streamed from the manifest when somebody evaluates on it.
    """

    config: ContextConfig
    backbone: Backbone
    manifest: Manifest
    text_CE: Tensor
    device: torch.device

    @cached_property
    def train(self) -> ImageSet:
        """The few-shot training images."""
        return self.read(self._split.train_rows)

    @cached_property
    def val(self) -> ImageSet:
        """The few-shot validation images."""
        return self.read(self._split.val_rows)

    @cached_property
    @torch.no_grad()
    def train_features(self) -> Tensor:
        """Unit-length features_NE of the training images, by the untouched model."""
        shares = []
        for start in range(0, len(self.train), FEATURE_BATCH_SIZE):
            rows = range(start, min(start + FEATURE_BATCH_SIZE, len(self.train)))
            images_BCHW = eval_batch(self.train, rows, self.backbone.transform)
            shares.append(self.backbone.clip.encode_image(images_BCHW.to(self.device)).float())
        return F.normalize(torch.cat(shares), dim=-1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their numbers."""
        return self.manifest.classes

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names, in the order of their numbers."""
        return self.manifest.domains

    def task(self, forget: tuple[str, ...]) -> Task:
        """The unlearning task for one forget set.

        Raises:
            UserError: If the forget set is empty, unknown or everything.
        """
        check_forget_set(forget, self.domains)
        template = self.config.backbone.template
        return Task(self.classes, self.domains, forget, self.text_CE, template)

    @cached_property
    def _split(self) -> FewShotSplit:
        data = self.config.data
        return self.manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)

    def read(self, rows: np.ndarray) -> ImageSet:
        """Reads and decodes images of the manifest."""
        stored_size = STORED_SIZE_FACTOR * self.backbone.transform.image_size
        return read_images(self.manifest, rows, stored_size, self.config.data.read_threads)


def load_context(config: ContextConfig, device: torch.device) -> Context:
    """Loads the model and the manifest; images follow when they are needed.

    Raises:
        UserError: If the model or the manifest cannot be used.
    """
    manifest = select_images(load_manifest(config.data.manifest), config.data)
    return open_context(config, manifest, device)


def open_context(config: ContextConfig, manifest: Manifest, device: torch.device) -> Context:
    """Loads the model for a manifest that is there already.

    Raises:
        UserError: If the model cannot be used.
    """
    backbone = load_backbone(config.backbone, device)
    text_CE = backbone.text_features(manifest.classes, config.backbone.template)
    return Context(config, backbone, manifest, text_CE, device)


def check_forget_set(forget: tuple[str, ...], domains: tuple[str, ...]) -> None:
    """Checks that a forget set names some but not all of the domains.

    Raises:
        UserError: Naming what is wrong and the known domains.
    """
    known = ", ".join(domains)
    if not forget:
        raise UserError(f"forget set is empty (known domains: {known})")
    for domain in forget:
        if domain not in domains:
            raise UserError(f"forget domain '{domain}': unknown (known domains: {known})")
    if len(set(forget)) < len(forget):
        raise UserError(f"forget set {', '.join(forget)}: names a domain twice")
    if len(forget) == len(domains):
        raise UserError(f"forget set {', '.join(forget)}: is all domains, none is left to retain")
