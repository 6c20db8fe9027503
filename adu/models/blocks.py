"""open_clip's residual blocks, run so that a backward pass through frozen weights is cheap.

Tensor names carry their shape: B images or captions, T tokens, R tokens that are read, H heads,
W token width, A = W / H.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def run_block(
    block: Any, tokens_BTW: Tensor, mask_TT: Tensor | None = None, n_read: int | None = None
) -> Tensor:
    """Runs a block of open_clip; with gradients, in its own way if it is of the usual kind.

    Where gradients are recorded, `nn.MultiheadAttention` hands its projection a transposed view.
    PyTorch folds that into one matrix product only if the weight is trained too, and otherwise
    copies the frozen weight for every image: a third of a ViT-B step's time on CPU. And tokens
    whose output nobody reads are only looked at, not computed. A block through which no gradient
    goes has a fast path, and is left to itself.

    Args:
        block: A residual block of an open_clip transformer.
        tokens_BTW: Its input.
        mask_TT: What is added to the attention scores.
        n_read: R, if only the first so many tokens of the output are read.

    Returns:
        tokens_BRW, all of them if `n_read` is None.
    """
    if not (tokens_BTW.requires_grad and _is_usual(block)):
        return block(tokens_BTW, attn_mask=mask_TT)[:, :n_read]
    normed_BTW = block.ln_1(tokens_BTW)
    attended_BRW = _self_attention(block.attn, normed_BTW, mask_TT, n_read)
    tokens_BRW = tokens_BTW[:, :n_read] + block.ls_1(attended_BRW)
    return tokens_BRW + block.ls_2(block.mlp(block.ln_2(tokens_BRW)))


def _is_usual(block: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock  # loaded with the model by now

    # Not a subclass, which may attend in another way.
    return type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention


def _self_attention(
    attention: nn.MultiheadAttention,
    tokens_BTW: Tensor,
    mask_TT: Tensor | None,
    n_read: int | None,
) -> Tensor:
    weights, biases = attention.in_proj_weight, attention.in_proj_bias
    n_heads, width = attention.num_heads, attention.embed_dim
    if n_read is None:
        query_BHTA, key_BHTA, value_BHTA = _heads(tokens_BTW, weights, biases, n_heads)
    else:
        (query_BHTA,) = _heads(tokens_BTW[:, :n_read], weights[:width], biases[:width], n_heads)
        key_BHTA, value_BHTA = _heads(tokens_BTW, weights[width:], biases[width:], n_heads)
        mask_TT = None if mask_TT is None else mask_TT[:n_read]
    mask_TT = None if mask_TT is None else mask_TT.to(query_BHTA.dtype)
    mixed_BHTA = _attended(query_BHTA, key_BHTA, value_BHTA, mask_TT)
    return attention.out_proj(mixed_BHTA.transpose(1, 2).flatten(2))


def _attended(
    query_BHTA: Tensor, key_BHTA: Tensor, value_BHTA: Tensor, mask_TT: Tensor | None
) -> Tensor:
    if query_BHTA.device.type != "cpu" or query_BHTA.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query_BHTA, key_BHTA, value_BHTA, attn_mask=mask_TT)
    # On a CPU the fused function's backward pass in bf16 takes several times as long as this.
    scores_BHTT = query_BHTA * query_BHTA.shape[-1] ** -0.5 @ key_BHTA.transpose(-1, -2)
    if mask_TT is not None:
        scores_BHTT = scores_BHTT + mask_TT
    return scores_BHTT.softmax(dim=-1) @ value_BHTA


def _heads(tokens_BTW: Tensor, weights: Tensor, biases: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    """Projects tokens by one or more square matrices below one another, cut into heads."""
    packed_BTX = F.linear(tokens_BTW, weights, biases)
    packed_BTXHA = packed_BTX.unflatten(-1, (-1, n_heads, tokens_BTW.shape[-1] // n_heads))
    # One unbind, not slices: its gradient is put together once instead of added up.
    return tuple(part.transpose(1, 2) for part in packed_BTXHA.unbind(2))
