"""The prompted forward pass: a frozen tower with learnable tokens after its patches.

Tensor names carry their shape: B images, T tokens, P prompt tokens, W token width, E feature width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adu.tower import Tower

# (block number, image tokens before it) to the prompts_BPW that it gets; None leaves the
# prompts of the block before where they are.
PromptSource = Callable[[int, Tensor], Tensor | None]


def prompted_features(
    tower: Tower, images_BCHW: Tensor, first_BPW: Tensor | None, prompts_at: PromptSource
) -> Tensor:
    """Runs a tower with prompts.

    Args:
        tower: The frozen image tower.
        images_BCHW: Prepared images.
        first_BPW: Prompts of the first block, which go in before ``ln_pre``; None for none.
        prompts_at: Gives each later block's prompts; they replace those of the block before.

    Returns:
        features_BE, of any length. Without any prompts, exactly the tower's own.
    """
    tokens_BTW = tower.embed(images_BCHW, first_BPW)
    n_image_tokens = tokens_BTW.shape[1] - (0 if first_BPW is None else first_BPW.shape[1])
    for i in range(tower.n_blocks):
        if i > 0:
            image_BTW = tokens_BTW[:, :n_image_tokens]
            prompts_BPW = prompts_at(i, image_BTW)
            if prompts_BPW is not None:
                tokens_BTW = torch.cat([image_BTW, prompts_BPW.to(image_BTW.dtype)], dim=1)
        tokens_BTW = tower.block(i, tokens_BTW)
    return tower.pool(tokens_BTW[:, :n_image_tokens])
