"""What the class token of an image tower looks at.

Tensor names carry their shape: B images, C channels, H height, W width or token width, T tokens,
N sample images, A width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adu.context import Context
from adu.data.decoded import eval_batch
from adu.data.forget import forget_domains
from adu.methods import Method
from adu.models.tower import ViTTower

SAMPLES_PER_SIDE = 3


@dataclass(frozen=True)
class SampleAttention:
    """Sample images of some domains, and where the class token looks.

    Attributes:
        images_NHWC: The images as the model sees them, in 0 to 255.
        attention_NHW: Attention of the last block's class token on each patch, mean over heads.
        domain_N: Names of their domains.
        class_N: Names of their classes.
    """

    images_NHWC: np.ndarray
    attention_NHW: np.ndarray
    domain_N: tuple[str, ...]
    class_N: tuple[str, ...]

    def only(self, domains: Sequence[str]) -> SampleAttention | None:
        """The samples of these domains, in their order; None if there are none."""
        rows = [row for domain in domains for row, its in enumerate(self.domain_N) if its == domain]
        if not rows:
            return None
        return SampleAttention(
            self.images_NHWC[rows],
            self.attention_NHW[rows],
            tuple(self.domain_N[row] for row in rows),
            tuple(self.class_N[row] for row in rows),
        )


def sample_attention(
    model: Method, context: Context, domains: Sequence[str]
) -> SampleAttention | None:
    """Shows where a model looks on a few validation images of these domains; always the same ones.

    Returns:
        None for a tower whose pooling has no class token to look at, or without such images.
    """
    rows = [row for domain in domains for row in _first_rows(context, domain)]
    if not rows:
        return None
    transform = context.backbone.transform
    images_BCHW = eval_batch(context.val, rows, transform)
    attention_BHW = class_attention(model, images_BCHW.to(context.device))
    if attention_BHW is None:
        return None
    mean_C, std_C = torch.tensor(transform.mean), torch.tensor(transform.std)
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1) * std_C + mean_C
    return SampleAttention(
        (255 * pixels_BHWC.clamp(0, 1)).round().byte().numpy(),
        attention_BHW.float().cpu().numpy(),
        tuple(context.domains[number] for number in context.val.domain_N[rows].tolist()),
        tuple(context.classes[number] for number in context.val.class_N[rows].tolist()),
    )


def shown_domains(forget: Sequence[str], domains: Sequence[str]) -> tuple[str, str]:
    """A domain that is kept and one that is to be forgotten, of which samples are shown."""
    touched = forget_domains(tuple(forget), tuple(domains))
    retain = [domain for domain in domains if domain not in touched] or touched
    return retain[0], touched[0]


@torch.no_grad()
def class_attention(model: Method, images_BCHW: Tensor) -> Tensor | None:
    """Attention_BHW of the last block's class token on the patches, as a share of all it looks at.

    Returns:
        None if the tower is not open_clip's own with a class token.
    """
    tower = model.backbone.tower
    if not isinstance(tower, ViTTower) or tower.visual.attn_pool is not None:
        return None
    block: Any = tower.visual.transformer.resblocks[-1]
    if type(block.attn) is not nn.MultiheadAttention:
        return None
    seen: list[Tensor] = []

    def look(_: nn.Module, __: object, normed_BTW: Tensor) -> None:
        # Now: a method may have put its own weights in the block's place for this call alone.
        seen.append(_class_token_weights(block.attn, normed_BTW))

    hook = block.ln_1.register_forward_hook(look)
    try:
        model.eval()
        model(images_BCHW)
    finally:
        hook.remove()
    rows, columns = tower.visual.grid_size
    patches_BT = seen[0][:, tower.n_prefix : tower.n_prefix + rows * columns]
    return patches_BT.reshape(len(images_BCHW), rows, columns)


def _class_token_weights(attention: nn.MultiheadAttention, normed_BTW: Tensor) -> Tensor:
    packed_BTX = F.linear(normed_BTW, attention.in_proj_weight, attention.in_proj_bias)
    packed_BT3HA = packed_BTX.unflatten(-1, (3, attention.num_heads, -1))
    query_BHA, key_BTHA = packed_BT3HA[:, 0, 0], packed_BT3HA[:, :, 1]
    scores_BHT = torch.einsum("bha,btha->bht", query_BHA, key_BTHA)
    scores_BHT = scores_BHT / math.sqrt(query_BHA.shape[-1])
    return scores_BHT.softmax(dim=-1).mean(dim=1)


def _first_rows(context: Context, domain: str) -> list[int]:
    """The first image of each of the first classes in a domain."""
    images, number = context.val, context.domains.index(domain)
    rows: dict[int, int] = {}
    for row, (of_domain, of_class) in enumerate(
        zip(images.domain_N.tolist(), images.class_N.tolist(), strict=True)
    ):
        if of_domain == number:
            rows.setdefault(of_class, row)
    return [rows[of_class] for of_class in sorted(rows)][:SAMPLES_PER_SIDE]
