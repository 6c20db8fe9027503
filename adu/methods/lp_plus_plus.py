"""LP++ (Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024).

A linear probe on frozen features, blended with the text features by a learned multiplier a class:
logits_ik = f_i . (w_k + alpha_k t_k). Step sizes are not searched for but come from Lipschitz
bounds of the loss. Trained here with L_memorize + L_forget, whose Hessians are bounded alike, since
both are linear in the logits but for the same log-sum-exp.

Tensor names carry their shape: N training images, B images, C classes, E feature width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from adu.backbone import Backbone
from adu.config import StrictModel
from adu.methods.base import Method, Task


class LpPlusPlusConfig(StrictModel):
    """LP++ has no options: its step sizes follow from the data."""

    name: Literal["lp++"] = "lp++"


class LpPlusPlus(Method):
    """A linear probe that starts from the zero-shot classifier and the class means."""

    needs_features = True
    any_classes = False

    def __init__(self, config: LpPlusPlusConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.weight_CE = nn.Parameter(torch.zeros_like(task.text_CE))
        # Where the paper estimates a start from the shots, ours is CLIP's own scale: zero-shot.
        scale = backbone.clip.logit_scale.exp().item()
        self.alpha_C = nn.Parameter(torch.full((len(task.classes),), scale))
        self._step_sizes: dict[str, float] = {}

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's own features_BE."""
        return self.backbone.clip.encode_image(images_BCHW)

    def class_logits(self, features_BE: Tensor, text_CE: Tensor | None = None) -> Tensor:
        """f . (w_k + alpha_k t_k)."""
        text_CE = self.task.text_CE if text_CE is None else text_CE
        text_CE = text_CE.to(features_BE.device)
        return features_BE @ (self.weight_CE + self.alpha_C[:, None] * text_CE).T

    @torch.no_grad()
    def prepare(self, features_NE: Tensor, class_N: Tensor, domain_N: Tensor) -> None:
        """Starts from the retain images' class means and computes the step sizes."""
        retain_N = self.task.retain_mask(domain_N)
        for c in range(len(self.task.classes)):
            own_N = retain_N & (class_N == c)
            if own_N.any():
                self.weight_CE[c] = features_NE[own_N].mean(dim=0)
        # Each image's weight in the loss: L_memorize and L_forget are means of their own.
        n_retain, n_forget = retain_N.sum().clamp(min=1), (~retain_N).sum().clamp(min=1)
        weight_N = torch.where(retain_N, 1 / n_retain, 1 / n_forget)
        self._step_sizes = step_sizes(features_NE, self.task.text_CE, weight_N)

    def step_sizes(self) -> dict[str, float]:
        """The inverse Lipschitz constants of both blocks of variables."""
        return self._step_sizes


def step_sizes(features_NE: Tensor, text_CE: Tensor, weight_N: Tensor) -> dict[str, float]:
    """1/L for the gradient in each block of variables (LP++, section 3.3).

    The second derivative of the cross-entropy in one class' logit is p(1 - p), at most 1/4. So
    L_w = lambda_max(sum_i a_i f_i f_i^T) / 4 and L_alpha = max_k sum_i a_i (f_i . t_k)^2 / 4, with
    a_i = 1/N in the paper.
    """
    features, text = features_NE.double(), text_CE.double()
    weight = weight_N.double()
    gram_EE = features.T @ (weight[:, None] * features)
    similarity_NC = features @ text.T
    largest = torch.linalg.eigvalsh(gram_EE)[-1].item()
    return {
        "weight_CE": 4 / largest,
        "alpha_C": 4 / (weight @ similarity_NC.square()).max().item(),
    }
