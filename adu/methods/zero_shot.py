"""Zero-shot: the pre-trained model as it is. Nothing is trained, nothing forgotten."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from adu.config import StrictModel
from adu.methods.base import Method, Task
from adu.models.backbone import Backbone


class ZeroShotConfig(StrictModel):
    """Zero-shot has no options."""

    name: Literal["zero_shot"] = "zero_shot"


class ZeroShot(Method):
    """The frozen model (Radford et al., ICML 2021)."""

    def __init__(self, config: ZeroShotConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's own features_BE."""
        return self.backbone.clip.encode_image(images_BCHW)

    def open_clip_weights(self) -> dict[str, Tensor]:
        """None of them has changed."""
        return {}
