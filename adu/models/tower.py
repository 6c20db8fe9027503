"""Image towers of open_clip, opened at the places where prompts go in.

Tensor names carry their shape: B images, T tokens, N patches, P prompt tokens, W token width,
E feature width, R twice the width that rotary positions turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from adu.models.blocks import run_block


class Tower(nn.Module, ABC):
    """A vision transformer as embedding, blocks and pooling.

    Run one after the other, without prompts, the three give exactly what the tower gives.

    Attributes:
        n_blocks: Transformer blocks.
        width: W.
        heads: Attention heads of a block.
        n_prefix: Tokens before the patches: class token and registers.
        n_pooled: How many of the first tokens pooling looks at; None: at all.
    """

    n_blocks: int
    width: int
    heads: int
    n_prefix: int
    n_pooled: int | None = None

    @abstractmethod
    def embed(self, images_BCHW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
        """Turns images into the first block's tokens_BTW.

        Prompts follow the patches, after the positional embedding and before the norm that
        stands ahead of the blocks, as in the code family of the paper (VPT, IVLP, MaPLe).
        """

    @abstractmethod
    def block(self, i: int, tokens_BTW: Tensor, n_read: int | None = None) -> Tensor:
        """Runs one block; prompts are the tokens after the patches.

        Args:
            i: Its number.
            tokens_BTW: Its input.
            n_read: If given, only the first so many tokens are returned.
        """

    @abstractmethod
    def pool(self, tokens_BTW: Tensor) -> Tensor:
        """Turns the last block's image tokens, at least ``n_pooled``, into features_BE."""


class ViTTower(Tower):
    """open_clip's own VisionTransformer: ViT-B-16, ViT-L-14, ViT-H-14 and their kin."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.n_blocks = len(visual.transformer.resblocks)
        self.width = visual.conv1.out_channels
        self.heads = visual.transformer.resblocks[0].attn.num_heads
        self.n_prefix = 1
        pools_class_token = visual.attn_pool is None and visual.pool_type == "tok"
        self.n_pooled = 1 if pools_class_token else None

    def embed(self, images_BCHW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
        """See `Tower.embed`."""
        visual = self.visual
        patches_BNW = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
        class_token_BW = visual.class_embedding.to(patches_BNW.dtype).expand(len(images_BCHW), -1)
        tokens_BTW = torch.cat([class_token_BW[:, None], patches_BNW], dim=1)
        tokens_BTW = tokens_BTW + visual.positional_embedding.to(tokens_BTW.dtype)
        return visual.ln_pre(_with_prompts(tokens_BTW, prompts_BPW))

    def block(self, i: int, tokens_BTW: Tensor, n_read: int | None = None) -> Tensor:
        """See `Tower.block`."""
        return run_block(self.visual.transformer.resblocks[i], tokens_BTW, n_read=n_read)

    def pool(self, tokens_BTW: Tensor) -> Tensor:
        """See `Tower.pool`."""
        pooled_BW, _ = self.visual._pool(tokens_BTW)
        return pooled_BW if self.visual.proj is None else pooled_BW @ self.visual.proj


class TimmTower(Tower):
    """timm's VisionTransformer within open_clip: SigLIP, SigLIP 2 and others."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.trunk = visual.trunk
        self.n_blocks = len(self.trunk.blocks)
        self.width = self.trunk.embed_dim
        self.heads = self.trunk.blocks[0].attn.num_heads
        self.n_prefix = self.trunk.num_prefix_tokens

    def embed(self, images_BCHW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
        """See `Tower.embed`."""
        tokens_BTW = self.trunk._pos_embed(self.trunk.patch_embed(images_BCHW))
        return self.trunk.norm_pre(_with_prompts(tokens_BTW, prompts_BPW))

    def block(self, i: int, tokens_BTW: Tensor, n_read: int | None = None) -> Tensor:
        """See `Tower.block`."""
        return self.trunk.blocks[i](tokens_BTW)[:, :n_read]

    def pool(self, tokens_BTW: Tensor) -> Tensor:
        """See `Tower.pool`."""
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens_BTW)))


class EvaTower(TimmTower):
    """timm's Eva within open_clip: EVA, EVA02 and Perception Encoders.

    Its attention turns patches by where they are in the image (rotary positions). Prompts are
    nowhere in it and are not turned.
    """

    def embed(self, images_BCHW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
        """See `Tower.embed`."""
        tokens_BTW, _ = self.trunk._pos_embed(self.trunk.patch_embed(images_BCHW))
        return self.trunk.norm_pre(_with_prompts(tokens_BTW, prompts_BPW))

    def block(self, i: int, tokens_BTW: Tensor, n_read: int | None = None) -> Tensor:
        """See `Tower.block`."""
        if self.trunk.rope is None:
            return super().block(i, tokens_BTW, n_read)
        angles_NR = self._angles(i)
        n_prompts = tokens_BTW.shape[1] - self.n_prefix - angles_NR.shape[-2]
        angles_NR = _with_still(angles_NR, n_prompts)
        return self.trunk.blocks[i](tokens_BTW, rope=angles_NR)[:, :n_read]

    def _angles(self, i: int) -> Tensor:
        """Sines and cosines (..., N, R) of a block: one set for all or one for each."""
        rope = self.trunk.rope
        fixed_grid = hasattr(rope, "feat_shape")
        angles: Tensor = rope.get_embed(*([] if fixed_grid else [self.trunk.patch_embed.grid_size]))
        return angles[i] if getattr(self.trunk, "rope_mixed", False) else angles


def _with_prompts(tokens_BTW: Tensor, prompts_BPW: Tensor | None) -> Tensor:
    if prompts_BPW is None:
        return tokens_BTW
    return torch.cat([tokens_BTW, prompts_BPW.to(tokens_BTW.dtype)], dim=1)


def _with_still(angles_NR: Tensor, n_prompts: int) -> Tensor:
    """Adds an angle of zero for each prompt: the first half of R are sines, the rest cosines."""
    if n_prompts == 0:
        return angles_NR
    half = angles_NR.shape[-1] // 2
    still_PR = angles_NR.new_zeros((*angles_NR.shape[:-2], n_prompts, 2 * half))
    still_PR[..., half:] = 1
    return torch.cat([angles_NR, still_PR], dim=-2)
