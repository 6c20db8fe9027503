"""Baseline of the paper: deep vision prompts trained with L_memorize + L_forget alone.

Tensor names carry their shape: B images, T tokens, P prompt tokens, W token width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.errors import UserError
from adu.methods.base import Method, Task
from adu.methods.losses import ForgetLoss
from adu.models.backbone import Backbone
from adu.models.prompted import PromptSource, prompted_features
from adu.models.prompts import DeepPrompts
from adu.models.text import TextContext, three_quarters


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
    text_init: str | None = Field(
        None, description="words that the learned text context starts from; unset: at random"
    )
    text_depth: int | None = Field(
        1, ge=1, description="text blocks with learned tokens; null: three quarters of them"
    )
    forget_loss: ForgetLoss = Field(
        "uniform",
        description="towards uniform predictions; entropy: away from certain ones; neggrad: away "
        "from the true class (a control)",
    )
    memorize_weight: float = Field(1.0, ge=0, description="weight of L_memorize; 0: a control")
    forget_weight: float = Field(1.0, ge=0, description="weight of L_forget; 0: a control")

    def depth_in(self, n_blocks: int) -> int:
        """The number of prompted blocks; 9 of 12 by default, as in the paper.

        Raises:
            UserError: If the tower has fewer blocks than asked for.
        """
        depth = three_quarters(n_blocks) if self.depth is None else self.depth
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
        self.forget_kind = config.forget_loss
        self.memorize_weight, self.forget_weight = config.memorize_weight, config.forget_weight
        if config.text_n_ctx:
            self.text_context = TextContext(
                backbone,
                task.classes,
                config.text_n_ctx,
                config.text_init,
                depth=config.text_depth,
            )

    def text_features(self) -> Tensor:
        """The captions' text_CE, or that of the learned context."""
        return self.text_context() if hasattr(self, "text_context") else super().text_features()

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The learned context, if there is one."""
        return self.text_context.parameters() if hasattr(self, "text_context") else ()

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
