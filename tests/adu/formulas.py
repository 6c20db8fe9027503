"""Layers of a transformer from their formulas, in float64."""

import torch


def norm_64(norm, x):
    apart = x - x.mean(dim=-1, keepdim=True)
    deviation = (apart.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    return apart / deviation * norm.weight + norm.bias


def attention_64(attention, queries, others):
    """Multi-head attention, one head after the other; of one image, or of one along dimension 0."""
    width = queries.shape[-1]
    weights, biases = attention.in_proj_weight.double(), attention.in_proj_bias.double()
    parts = [slice(k * width, (k + 1) * width) for k in range(3)]
    q, k, v = (
        x @ weights[part].T + biases[part]
        for x, part in zip((queries, others, others), parts, strict=True)
    )
    size = width // attention.num_heads
    heads = []
    for h in range(attention.num_heads):
        of_head = slice(h * size, (h + 1) * size)
        powers = (q[..., of_head] @ k[..., of_head].mT / size**0.5).exp()
        heads.append(powers / powers.sum(dim=-1, keepdim=True) @ v[..., of_head])
    joined = torch.cat(heads, dim=-1)
    return joined @ attention.out_proj.weight.double().T + attention.out_proj.bias
