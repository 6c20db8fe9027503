"""The four terms of L_total (Kawamura et al., NeurIPS 2025, section 4).

Tensor names carry their shape: B images of a batch, C classes, D domains, E feature width.
Every function takes the *global* batch; gathering it from the workers is `adu.distributed`'s job.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["biased", "unbiased"]

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
    features_BE: Tensor, domain_B: Tensor, n_domains: int, estimator: Estimator = "biased"
) -> Tensor:
    """Mean squared maximum mean discrepancy over all pairs of domains in the batch.

    The kernel is the mean of five Gaussians around the detached mean squared distance, so that
    MMD^2 stays below 2 whatever their number and lambda keeps one meaning.

    Args:
        features_BE: Image features.
        domain_B: Domain of each image.
        n_domains: D.
        estimator: Whether an image is compared with itself ("biased") or not ("unbiased").

    Returns:
        A scalar; domains without an image (or with one, if unbiased) are left out of the mean,
        and with fewer than two domains left it is 0, still part of the graph.
    """
    kernel_BB = gaussian_kernel(features_BE.float())
    member_BD = F.one_hot(domain_B, n_domains).to(kernel_BB.dtype)
    n_D = member_BD.sum(dim=0)
    sums_DD = member_BD.T @ kernel_BB @ member_BD
    if estimator == "biased":
        within_D = sums_DD.diagonal() / n_D.clamp(min=1).square()
        present_D = n_D >= 1
    else:
        # The kernel of an image with itself is 1.
        within_D = (sums_DD.diagonal() - n_D) / (n_D * (n_D - 1)).clamp(min=1)
        present_D = n_D >= 2
    between_DD = sums_DD / (n_D[:, None] * n_D[None, :]).clamp(min=1)
    mmd_DD = within_D[:, None] + within_D[None, :] - 2 * between_DD
    pairs_DD = torch.triu(present_D[:, None] & present_D[None, :], diagonal=1)
    return _masked_mean(mmd_DD, pairs_DD)


def gaussian_kernel(features_BE: Tensor) -> Tensor:
    """Mean over `BANDWIDTH_SCALES` of exp(-||x - y||^2 / (scale * mean ||x - y||^2))."""
    # The differences themselves, not |x|^2 + |y|^2 - 2xy: exact zeros for identical features.
    squared_BB = (features_BE[:, None, :] - features_BE[None, :, :]).square().sum(dim=-1)
    n = len(features_BE)
    mean = squared_BB.detach().sum() / max(n * (n - 1), 1)
    # Identical features everywhere: any positive width gives the right kernel, all ones.
    width = torch.where(mean > 0, mean, torch.ones_like(mean))
    kernels = [torch.exp(-squared_BB / (scale * width)) for scale in BANDWIDTH_SCALES]
    return torch.stack(kernels).mean(dim=0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is set; 0 with a gradient of 0 where it never is."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)
