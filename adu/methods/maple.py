"""MaPLe (Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023).

Learned tokens stand in the first blocks of the text tower; those of the image tower are made from
them by a linear map a block. Trained here with L_memorize + L_forget.

Tensor names carry their shape: B images, K prompt tokens, V text width, W image token width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.errors import UserError
from adu.methods.base import Method, Task
from adu.models.backbone import Backbone
from adu.models.prompted import prompted_features
from adu.models.text import TextContext, three_quarters


class MaPLeConfig(StrictModel):
    """MaPLe's options; the defaults are its paper's."""

    name: Literal["maple"] = "maple"
    n_ctx: int = Field(2, ge=1, le=64, description="prompt tokens in each prompted block")
    depth: int | None = Field(
        None, ge=1, description="prompted blocks of both towers; unset: three quarters, 9 of 12"
    )
    init: str = Field("a photo of a", description="words that the first text block starts from")
    init_std: float = Field(0.02, gt=0, description="standard deviation of all other prompts")


class MaPLe(Method):
    """Deep prompts of both towers, coupled."""

    def __init__(self, config: MaPLeConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.context = TextContext(
            backbone, task.classes, config.n_ctx, config.init, config.init_std
        )
        text_width, width = self.context.captions.width, backbone.tower.width
        depth = _depth(config, min(backbone.tower.n_blocks, self.context.captions.n_blocks))
        self.deeper = nn.ParameterList(
            nn.Parameter(torch.randn(config.n_ctx, text_width) * config.init_std)
            for _ in range(depth - 1)
        )
        self.couplings = nn.ModuleList(nn.Linear(text_width, width) for _ in range(depth))

    def text_features(self) -> Tensor:
        """text_CE with each block's prompts."""
        return self.context.captions.features(self.context.tokens, self._deeper_at)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The text tower's prompts."""
        return self.context.tokens, *self.deeper

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Runs the image tower with the prompts that the text side's are mapped to."""
        n_images = len(images_BCHW)

        def prompts_at(block: int, _: Tensor) -> Tensor:
            return self.couplings[block](self.deeper[block - 1]).expand(n_images, -1, -1)

        first_BKW = self.couplings[0](self.context.tokens).expand(n_images, -1, -1)
        return prompted_features(
            self.backbone.tower, images_BCHW, first_BKW, prompts_at, len(self.couplings)
        )

    def _deeper_at(self, block: int) -> Tensor | None:
        return self.deeper[block - 1] if block <= len(self.deeper) else None


def _depth(config: MaPLeConfig, n_blocks: int) -> int:
    depth = three_quarters(n_blocks) if config.depth is None else config.depth
    if depth > n_blocks:
        raise UserError(f"method.depth = {depth}: the shorter tower has {n_blocks} blocks")
    return depth
