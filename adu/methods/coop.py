"""CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022).

The words before the class name are learned, the same ones for all classes; the image side is
untouched. Trained here with L_memorize + L_forget.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.methods.base import Method, Task
from adu.models.backbone import Backbone
from adu.models.text import TextContext


class CoOpConfig(StrictModel):
    """CoOp's options; the defaults are its paper's."""

    name: Literal["coop"] = "coop"
    n_ctx: int = Field(16, ge=1, le=64, description="learned tokens before the class name")
    init: str | None = Field(None, description="words to start from; unset: at random")
    init_std: float = Field(0.02, gt=0, description="standard deviation of a random start")


class CoOp(Method):
    """A learned text context."""

    def __init__(self, config: CoOpConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.context = TextContext(
            backbone, task.classes, config.n_ctx, config.init, config.init_std
        )

    def text_features(self) -> Tensor:
        """text_CE with the learned context."""
        return self.context()

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The context."""
        return self.context.parameters()

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's own features_BE."""
        return self.backbone.clip.encode_image(images_BCHW)

    def open_clip_weights(self) -> dict[str, Tensor]:
        """None of them has changed."""
        return {}
