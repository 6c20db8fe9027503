"""What is learned: deep vision prompts and the instance-wise prompt generator.

Tensor names carry their shape: B images, P prompt tokens (n_ctx), N patch tokens, W token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adu.errors import UserError


class DeepPrompts(nn.Module):
    """``n_ctx`` learnable tokens for each of the first ``depth`` blocks (VPT-deep)."""

    def __init__(self, depth: int, n_ctx: int, width: int, init_std: float) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(
            nn.Parameter(torch.randn(n_ctx, width) * init_std) for _ in range(depth)
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def keep_first(self, depth: int) -> None:
        """Drops the prompts of all blocks from ``depth`` on."""
        self.tokens = self.tokens[:depth]

    def at(self, block: int, batch_size: int) -> Tensor:
        """The prompts_BPW of one block, the same for every image."""
        return self.tokens[block].expand(batch_size, -1, -1)


class InstaPG(nn.Module):
    """Makes prompts for one image out of its patch features (paper, section 4.2).

    Cross-attention: the block's learnable prompts ask, the image's patches answer. With the
    feed-forward part it is a whole transformer block, as in the authors' code: the normed prompts
    are added to the answer, and a feed-forward part of four times the width, with QuickGELU, to
    both.
    """

    def __init__(self, width: int, heads: int, feed_forward: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"method.instapg_heads = {heads}: must divide the token width {width}")
        self.norm_prompts = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        if feed_forward:
            self.norm_answer = nn.LayerNorm(width)
            self.expand = nn.Linear(width, 4 * width)
            self.reduce = nn.Linear(4 * width, width)
        self._feed_forward = feed_forward

    def forward(self, prompts_BPW: Tensor, patches_BNW: Tensor) -> Tensor:
        """Returns each image's prompts_BPW."""
        prompts_BPW, patches_BNW = self.norm_prompts(prompts_BPW), self.norm_patches(patches_BNW)
        answer_BPW, _ = self.attention(prompts_BPW, patches_BNW, patches_BNW, need_weights=False)
        if not self._feed_forward:
            return answer_BPW
        answer_BPW = prompts_BPW + answer_BPW
        return answer_BPW + self.reduce(_quick_gelu(self.expand(self.norm_answer(answer_BPW))))


def _quick_gelu(x: Tensor) -> Tensor:
    """The activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)
