"""The prompted forward pass: a frozen tower with learnable tokens after its patches.

Tensor names carry their shape: B images, T tokens, P prompt tokens, W token width, E feature width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adu.models.tower import Tower

# (number of a prompted block after the first, image tokens before it) to its prompts_BPW.
PromptSource = Callable[[int, Tensor], Tensor]


def prompted_features(
    tower: Tower,
    images_BCHW: Tensor,
    first_BPW: Tensor | None,
    prompts_at: PromptSource,
    depth: int,
) -> Tensor:
    """Runs a tower with prompts.

    Args:
        tower: The frozen image tower.
        images_BCHW: Prepared images.
        first_BPW: Prompts of the first block, which go in before ``ln_pre``; None for none.
        prompts_at: Gives each later prompted block's prompts, in the place of those of the block
            before.
        depth: Prompted blocks, from the first on; later ones carry the last prompts on.

    Returns:
        features_BE, of any length. Without any prompts, exactly the tower's own.
    """
    tokens_BTW = tower.embed(images_BCHW, first_BPW)
    n_image_tokens = tokens_BTW.shape[1] - (0 if first_BPW is None else first_BPW.shape[1])
    for i in range(tower.n_blocks):
        if 0 < i < depth:
            # A part that is the whole would cost a copy of its gradient.
            has_prompts = tokens_BTW.shape[1] > n_image_tokens
            image_BTW = tokens_BTW[:, :n_image_tokens] if has_prompts else tokens_BTW
            prompts_BPW = prompts_at(i, image_BTW)
            tokens_BTW = torch.cat([image_BTW, prompts_BPW.to(image_BTW.dtype)], dim=1)
        # What becomes of prompts that the next block replaces, nobody reads.
        n_read = n_image_tokens if i + 1 < depth else None
        if i == tower.n_blocks - 1:
            n_read = tower.n_pooled or n_image_tokens
        tokens_BTW = tower.block(i, tokens_BTW, n_read)
    return tower.pool(tokens_BTW)
