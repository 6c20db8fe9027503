"""The four terms of L_total (Kawamura et al., NeurIPS 2025, section 4).

Tensor names carry their shape: B images of a batch, C classes, D domains, E feature width.
Every function takes the *global* batch; gathering it from the workers is `adu.distributed`'s job.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["biased", "unbiased"]
Kernel = Literal["gaussian", "gaussian_median", "pair_median", "laplace", "linear"]
ForgetLoss = Literal["uniform", "entropy", "neggrad"]

# Widths of the Gaussians, as multiples of the mean squared distance between two features.
BANDWIDTH_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)

# Keeps the logarithm of the authors' entropy finite.
ENTROPY_EPS = 1e-5


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


def forget_loss(
    logits_BC: Tensor, class_B: Tensor, retain_B: Tensor, kind: ForgetLoss = "uniform"
) -> Tensor:
    """L_forget over the forget images.

    Args:
        logits_BC: Class scores.
        class_B: True classes.
        retain_B: True where the image is of a retain domain.
        kind: ``uniform``, the mean cross-entropy with the uniform distribution (paper, section 4),
            at least log C; ``entropy``, minus the mean entropy of the prediction (authors' code),
            at least about -log C; ``neggrad``, minus the cross-entropy with the true class, a
            control without a lower bound.

    Returns:
        A scalar; 0, still part of the graph, where the batch has no forget image.
    """
    log_p_BC = F.log_softmax(logits_BC.float(), dim=-1)
    if kind == "uniform":
        per_image_B = -log_p_BC.mean(dim=-1)
    elif kind == "entropy":
        p_BC = log_p_BC.exp()
        per_image_B = (p_BC * (p_BC + ENTROPY_EPS).log()).sum(dim=-1)
    else:
        per_image_B = -F.nll_loss(log_p_BC, class_B, reduction="none")
    return _masked_mean(per_image_B, ~retain_B)


def domain_loss(domain_logits_BD: Tensor, domain_B: Tensor) -> Tensor:
    """L_CE: mean cross-entropy of the domain classifier over all images."""
    return F.cross_entropy(domain_logits_BD.float(), domain_B)


def mmd_squared(
    points_BE: Tensor,
    domain_B: Tensor,
    n_domains: int,
    estimator: Estimator = "biased",
    kernel: Kernel = "gaussian",
    bandwidth: float = 1.0,
) -> Tensor:
    """Mean squared maximum mean discrepancy over all pairs of domains in the batch.

    Args:
        points_BE: What is compared: image features, or the domain classifier's logits.
        domain_B: Domain of each image.
        n_domains: D.
        estimator: Whether an image is compared with itself ("biased") or not ("unbiased").
        kernel: A key of `KERNELS`, one for the whole batch, or "pair_median": one Gaussian for
            each pair of domains (authors' code).
        bandwidth: Factor on the width that the kernel takes from the batch.

    Returns:
        A scalar; domains without an image (or with one, if unbiased or "pair_median") are left out
        of the mean, and with fewer than two domains left it is 0, still part of the graph.
    """
    points_BE = points_BE.float()
    member_BD = F.one_hot(domain_B, n_domains).to(points_BE.dtype)
    if kernel == "pair_median":
        mmd_DD = _mmd_with_a_kernel_a_pair(points_BE, domain_B, member_BD, estimator, bandwidth)
    else:
        mmd_DD = _mmd_of_pairs(KERNELS[kernel](points_BE, bandwidth), member_BD, estimator)
    least = 1 if estimator == "biased" and kernel != "pair_median" else 2
    present_D = member_BD.sum(dim=0) >= least
    pairs_DD = torch.triu(present_D[:, None] & present_D[None, :], diagonal=1)
    return _masked_mean(mmd_DD, pairs_DD)


def _mmd_with_a_kernel_a_pair(
    points_BE: Tensor, domain_B: Tensor, member_BD: Tensor, estimator: Estimator, bandwidth: float
) -> Tensor:
    """MMD^2 of every pair of domains, each with the kernel of `_pair_median_kernel`."""
    squared_BB = _squared_distances(points_BE)
    n_domains = member_BD.shape[1]
    mmd_DD = squared_BB.new_zeros(n_domains, n_domains)
    for a, b in combinations(range(n_domains), 2):
        kernel_BB = _pair_median_kernel(squared_BB, domain_B == a, domain_B == b, bandwidth)
        mmd_DD[a, b] = _mmd_of_pairs(kernel_BB, member_BD[:, [a, b]], estimator)[0, 1]
    return mmd_DD


def _mmd_of_pairs(kernel_BB: Tensor, member_BD: Tensor, estimator: Estimator) -> Tensor:
    """MMD^2 of every pair of domains out of one kernel; anything where a domain has no image."""
    n_D = member_BD.sum(dim=0)
    sums_DD = member_BD.T @ kernel_BB @ member_BD
    if estimator == "biased":
        within_D = sums_DD.diagonal() / n_D.clamp(min=1).square()
    else:
        own_D = member_BD.T @ kernel_BB.diagonal()
        within_D = (sums_DD.diagonal() - own_D) / (n_D * (n_D - 1)).clamp(min=1)
    between_DD = sums_DD / (n_D[:, None] * n_D[None, :]).clamp(min=1)
    return within_D[:, None] + within_D[None, :] - 2 * between_DD


def _pair_median_kernel(
    squared_BB: Tensor, in_a_B: Tensor, in_b_B: Tensor, bandwidth: float
) -> Tensor:
    """exp(-d^2 / (2 s^2)), s the median distance of one domain's images to the other's."""
    between = squared_BB.detach()[in_a_B][:, in_b_B]
    # torch's median is one of the values (the lower of two), so that squares have the same one.
    width = _positive(between.median()) if between.numel() else squared_BB.new_ones(())
    return torch.exp(-squared_BB / (2 * bandwidth * width))


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
    distances_BB = torch.cdist(features_BE, features_BE, p=1)
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
    # From the differences themselves, not |x|^2 + |y|^2 - 2xy: exact zeros for identical features.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(features_BE, features_BE, compute_mode=mode).square()


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
