"""open_clip's residual blocks, run so that a backward pass through frozen weights is cheap.

Tensor names carry their shape: B images or captions, T tokens, H heads, W token width, A = W / H.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def run_block(block: Any, tokens_BTW: Tensor, mask_TT: Tensor | None = None) -> Tensor:
    """Runs a block of open_clip; with gradients, in its own way if it is of the usual kind.

    Where gradients are recorded, `nn.MultiheadAttention` hands its projection a transposed view.
    PyTorch folds that into one matrix product only if the weight is trained too, and otherwise
    copies the frozen weight for every image: a third of a ViT-B step's time on CPU. A block
    through which no gradient goes has a fast path, and is left to itself.

    Args:
        block: A residual block of an open_clip transformer.
        tokens_BTW: Its input.
        mask_TT: What is added to the attention scores.

    Returns:
        tokens_BTW.
    """
    if tokens_BTW.requires_grad and _is_usual(block):
        normed_BTW = block.ln_1(tokens_BTW)
        tokens_BTW = tokens_BTW + block.ls_1(_self_attention(block.attn, normed_BTW, mask_TT))
        return tokens_BTW + block.ls_2(block.mlp(block.ln_2(tokens_BTW)))
    return block(tokens_BTW, attn_mask=mask_TT)


def _is_usual(block: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock  # loaded with the model by now

    # Not a subclass, which may attend in another way.
    return type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention


def _self_attention(
    attention: nn.MultiheadAttention, tokens_BTW: Tensor, mask_TT: Tensor | None
) -> Tensor:
    packed_BTX = F.linear(tokens_BTW, attention.in_proj_weight, attention.in_proj_bias)
    packed_BT3HA = packed_BTX.unflatten(-1, (3, attention.num_heads, -1))
    # One unbind, not three slices: its gradient is put together once instead of added up.
    query_BHTA, key_BHTA, value_BHTA = (part.transpose(1, 2) for part in packed_BT3HA.unbind(2))
    mask_TT = None if mask_TT is None else mask_TT.to(query_BHTA.dtype)
    mixed_BHTA = F.scaled_dot_product_attention(query_BHTA, key_BHTA, value_BHTA, attn_mask=mask_TT)
    return attention.out_proj(mixed_BHTA.transpose(1, 2).flatten(2))
