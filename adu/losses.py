"""The four terms of L_total (Kawamura et al., NeurIPS 2025, section 4).

Tensor names carry their shape: B images of a batch, C classes, D domains, E feature width.
Every function takes the *global* batch; gathering it from the workers is `adu.distributed`'s job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["biased", "unbiased"]
Kernel = Literal["gaussian", "gaussian_median", "laplace", "linear"]

# Widths of the Gaussians, as multiples of the mean squared distance between two features.
BANDWIDTH_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def memorize_loss(logits_BC: Tensor, class_B: Tensor, retain_B: Tensor) -> Tensor:
    """L_memorize: mean cross-entropy with the true class over the retain images.

    Args:
        logits_BC: Class scores.
        class_B: True classes.
        retain_B: True where the image is of a retain domain.

    Returns:
        A scalar; 0, still part of the graph, where the batch has no retain image.
    """
    per_image_B = F.cross_entropy(logits_BC.float(), class_B, reduction="none")
    return _masked_mean(per_image_B, retain_B)


def forget_loss(logits_BC: Tensor, retain_B: Tensor) -> Tensor:
    """L_forget: mean cross-entropy with the uniform distribution over the forget images.

    Returns:
        A scalar of at least log C; 0, still part of the graph, without forget images.
    """
    per_image_B = -F.log_softmax(logits_BC.float(), dim=-1).mean(dim=-1)
    return _masked_mean(per_image_B, ~retain_B)


def domain_loss(domain_logits_BD: Tensor, domain_B: Tensor) -> Tensor:
    """L_CE: mean cross-entropy of the domain classifier over all images."""
    return F.cross_entropy(domain_logits_BD.float(), domain_B)


def mmd_squared(
    features_BE: Tensor,
    domain_B: Tensor,
    n_domains: int,
    estimator: Estimator = "biased",
    kernel: Kernel = "gaussian",
    bandwidth: float = 1.0,
) -> Tensor:
    """Mean squared maximum mean discrepancy over all pairs of domains in the batch.

    Args:
        features_BE: Image features.
        domain_B: Domain of each image.
        n_domains: D.
        estimator: Whether an image is compared with itself ("biased") or not ("unbiased").
        kernel: A key of `KERNELS`.
        bandwidth: Factor on the width that the kernel takes from the batch.

    Returns:
        A scalar; domains without an image (or with one, if unbiased) are left out of the mean,
        and with fewer than two domains left it is 0, still part of the graph.
    """
    kernel_BB = KERNELS[kernel](features_BE.float(), bandwidth)
    member_BD = F.one_hot(domain_B, n_domains).to(kernel_BB.dtype)
    n_D = member_BD.sum(dim=0)
    sums_DD = member_BD.T @ kernel_BB @ member_BD
    if estimator == "biased":
        within_D = sums_DD.diagonal() / n_D.clamp(min=1).square()
        present_D = n_D >= 1
    else:
        own_D = member_BD.T @ kernel_BB.diagonal()
        within_D = (sums_DD.diagonal() - own_D) / (n_D * (n_D - 1)).clamp(min=1)
        present_D = n_D >= 2
    between_DD = sums_DD / (n_D[:, None] * n_D[None, :]).clamp(min=1)
    mmd_DD = within_D[:, None] + within_D[None, :] - 2 * between_DD
    pairs_DD = torch.triu(present_D[:, None] & present_D[None, :], diagonal=1)
    return _masked_mean(mmd_DD, pairs_DD)


def gaussian_kernel(features_BE: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Mean over `BANDWIDTH_SCALES` of exp(-||x - y||^2 / (scale * mean ||x - y||^2)).

    The mean of the Gaussians, not their sum: MMD^2 stays below 2 whatever their number, and lambda
    keeps one meaning.
    """
    squared_BB = _squared_distances(features_BE)
    width = bandwidth * _mean_width(squared_BB)
    kernels = [torch.exp(-squared_BB / (scale * width)) for scale in BANDWIDTH_SCALES]
    return torch.stack(kernels).mean(dim=0)


def gaussian_median_kernel(features_BE: Tensor, bandwidth: float = 1.0) -> Tensor:
    """exp(-||x - y||^2 / median ||x - y||^2), the median over pairs of different images."""
    squared_BB = _squared_distances(features_BE)
    n = len(features_BE)
    above_BB = torch.ones_like(squared_BB, dtype=torch.bool).triu(diagonal=1)
    pairs = squared_BB.detach()[above_BB] if n > 1 else squared_BB.new_zeros(1)
    return torch.exp(-squared_BB / (bandwidth * _positive(pairs.median())))


def laplace_kernel(features_BE: Tensor, bandwidth: float = 1.0) -> Tensor:
    """exp(-|x - y|_1 / mean |x - y|_1)."""
    distances_BB = (features_BE[:, None, :] - features_BE[None, :, :]).abs().sum(dim=-1)
    return torch.exp(-distances_BB / (bandwidth * _mean_width(distances_BB)))


def linear_kernel(features_BE: Tensor, _: float = 1.0) -> Tensor:
    """<x, y>: MMD^2 is then the squared distance of the domains' means."""
    return features_BE @ features_BE.T


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian_kernel,
    "gaussian_median": gaussian_median_kernel,
    "laplace": laplace_kernel,
    "linear": linear_kernel,
}


def _squared_distances(features_BE: Tensor) -> Tensor:
    # The differences themselves, not |x|^2 + |y|^2 - 2xy: exact zeros for identical features.
    return (features_BE[:, None, :] - features_BE[None, :, :]).square().sum(dim=-1)


def _mean_width(distances_BB: Tensor) -> Tensor:
    """Mean distance of two different images; no gradient flows through a kernel's width."""
    n = len(distances_BB)
    return _positive(distances_BB.detach().sum() / max(n * (n - 1), 1))


def _positive(width: Tensor) -> Tensor:
    # Identical features everywhere: any positive width gives the right kernel, all ones.
    return torch.where(width > 0, width, torch.ones_like(width))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is set; 0 with a gradient of 0 where it never is."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)
