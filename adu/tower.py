"""An open_clip image tower, opened at the places where prompts go in.

Tensor names carry their shape: B images, T tokens, W token width, E feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


class ViTTower(nn.Module):
    """open_clip's own VisionTransformer as embedding, blocks and pooling.

    Run one after the other, without prompts, the three give exactly what the tower gives.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer blocks, tokens_BTW to tokens_BTW."""
        return self.visual.transformer.resblocks

    @property
    def width(self) -> int:
        """W."""
        return self.visual.conv1.out_channels

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.blocks[0].attn.num_heads

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: the class token."""
        return 1

    def embed(self, images_BCHW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
        """Turns images into the first block's tokens.

        Prompts follow the patches, after the positional embedding and before ``ln_pre``, as in
        the code family of the paper (VPT, IVLP, MaPLe).
        """
        visual = self.visual
        patches_BNW = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
        class_token_BW = visual.class_embedding.to(patches_BNW.dtype).expand(len(images_BCHW), -1)
        tokens_BTW = torch.cat([class_token_BW[:, None], patches_BNW], dim=1)
        tokens_BTW = tokens_BTW + visual.positional_embedding.to(tokens_BTW.dtype)
        if prompts_BPW is not None:
            tokens_BTW = torch.cat([tokens_BTW, prompts_BPW.to(tokens_BTW.dtype)], dim=1)
        return visual.ln_pre(tokens_BTW)

    def pool(self, tokens_BTW: Tensor) -> Tensor:
        """Turns the last block's tokens, without prompts, into features_BE."""
        pooled_BW, _ = self.visual._pool(tokens_BTW)
        return pooled_BW if self.visual.proj is None else pooled_BW @ self.visual.proj
