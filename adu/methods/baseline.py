"""Baseline of the paper: deep vision prompts trained with L_memorize + L_forget alone.

Tensor names carry their shape: B images, T tokens, P prompt tokens, W token width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from adu.backbone import Backbone
from adu.config import StrictModel
from adu.errors import UserError
from adu.methods.base import Method, Task
from adu.model import PromptSource, prompted_features
from adu.prompts import DeepPrompts
from adu.text import TextContext


class PromptConfig(StrictModel):
    """Deep vision prompts (VPT-deep: Jia et al., ECCV 2022)."""

    n_ctx: int = Field(8, ge=0, le=256, description="prompt tokens in each prompted block")
    depth: int | None = Field(
        None, ge=1, description="prompted blocks from the first on; unset: three quarters of them"
    )
    init_std: float = Field(0.02, gt=0, description="standard deviation of the prompts' init")

    text_n_ctx: int = Field(
        0, ge=0, le=64, description="learned tokens before the class name; 0: the caption as it is"
    )

    def depth_in(self, n_blocks: int) -> int:
        """The number of prompted blocks; 9 of 12 by default, as in the paper.

        Raises:
            UserError: If the tower has fewer blocks than asked for.
        """
        depth = max(1, n_blocks * 3 // 4) if self.depth is None else self.depth
        if depth > n_blocks:
            raise UserError(f"method.depth = {depth}: the image tower has {n_blocks} blocks")
        return depth


class BaselineConfig(PromptConfig):
    """The Baseline's options are those of its prompts."""

    name: Literal["baseline"] = "baseline"


class Baseline(Method):
    """Deep vision prompts in the first ``depth`` blocks (Kawamura et al., section 5)."""

    def __init__(self, config: PromptConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        depth = config.depth_in(backbone.tower.n_blocks) if config.n_ctx else 0
        self.prompts = DeepPrompts(depth, config.n_ctx, backbone.tower.width, config.init_std)
        if config.text_n_ctx:
            self.text_context = TextContext(backbone, task.classes, config.text_n_ctx)

    def text_features(self) -> Tensor:
        """The captions' text_CE, or that of the learned context."""
        return self.text_context() if hasattr(self, "text_context") else super().text_features()

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Runs the tower with each block's prompts; returns features_BE."""
        n_images = len(images_BCHW)

        def prompts_at(block: int, _: Tensor) -> Tensor:
            return self.prompts.at(block, n_images)

        return self.prompted(images_BCHW, prompts_at)

    def prompted(self, images_BCHW: Tensor, prompts_at: PromptSource) -> Tensor:
        """Runs the tower with this method's prompts in the first block; returns features_BE."""
        depth = len(self.prompts)
        first_BPW = self.prompts.at(0, len(images_BCHW)) if depth else None
        return prompted_features(self.backbone.tower, images_BCHW, first_BPW, prompts_at, depth)
