"""LP++ (Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024).

A linear probe on frozen features, blended with the text features by a learned multiplier a class:
logits_ik = f_i . (w_k + alpha_k t_k). It is trained on all images at once; where it starts and
how far it steps come from the data. The multipliers move once in `ALPHA_EVERY` steps (block
coordinate descent). Trained here with L_memorize + L_forget, whose Hessians are bounded alike,
since both are linear in the logits but for the same log-sum-exp.

Tensor names carry their shape: N training images, B images, C classes, E feature width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.methods.base import Method, StepSize, Task
from adu.models.backbone import Backbone

# Of the authors' code: github.com/FereshteShakeri/FewShot-CLIP-Strong-Baseline.
ALPHA_EVERY = 10
ALPHA_SCALE = 250.0
MOMENTUM = 0.9


class LpPlusPlusConfig(StrictModel):
    """LP++'s options; its step sizes follow from the data."""

    name: Literal["lp++"] = "lp++"
    iterations: int = Field(
        300, ge=1, description="steps of the whole run, shared out over its epochs"
    )


class LpPlusPlus(Method):
    """A linear probe that starts from the classes' sums of features."""

    any_classes = False

    def __init__(self, config: LpPlusPlusConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.full_batch_steps = config.iterations
        # Zero-shot until `prepare` has seen the images.
        scale = backbone.clip.logit_scale.exp().item()
        self.weight_CE = nn.Parameter(torch.zeros_like(task.text_CE))
        self.alpha_C = nn.Parameter(torch.full((len(task.classes),), scale))
        self._step_sizes: dict[str, StepSize] = {}

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's own features_BE."""
        return self.backbone.clip.encode_image(images_BCHW)

    def open_clip_weights(self) -> dict[str, Tensor]:
        """None of them has changed."""
        return {}

    def class_logits(self, features_BE: Tensor, text_CE: Tensor | None = None) -> Tensor:
        """f . (w_k + alpha_k t_k)."""
        text_CE = self.task.text_CE if text_CE is None else text_CE
        text_CE = text_CE.to(features_BE.device)
        return features_BE @ (self.weight_CE + self.alpha_C[:, None] * text_CE).T

    @torch.no_grad()
    def prepare(self, features_NE: Tensor, class_N: Tensor, domain_N: Tensor) -> None:
        """Starts from the approximate minima in closed form and computes the step sizes.

        Only retain images say what a class looks like: w_k is the sum of its features, and all
        alpha_k are `ALPHA_SCALE` times the mean over classes of its mean similarity to the caption.
        """
        retain_N = self.task.retain_mask(class_N, domain_N)
        text_CE = self.task.text_CE.to(features_NE.device)
        similarities = []
        for c in range(len(self.task.classes)):
            own_NE = features_NE[retain_N & (class_N == c)]
            self.weight_CE[c] = own_NE.sum(dim=0)
            if len(own_NE):
                similarities.append((own_NE @ text_CE[c]).mean())
        self.alpha_C.fill_(ALPHA_SCALE * torch.stack(similarities).mean())
        # Each image's weight in the loss: L_memorize and L_forget are means of their own.
        n_retain, n_forget = retain_N.sum().clamp(min=1), (~retain_N).sum().clamp(min=1)
        weight_N = torch.where(retain_N, 1 / n_retain, 1 / n_forget)
        lr = step_sizes(features_NE, text_CE, weight_N)
        self._step_sizes = {
            "weight_CE": StepSize(lr["weight_CE"], MOMENTUM),
            "alpha_C": StepSize(lr["alpha_C"], 0.0),
        }

    def step_sizes(self) -> dict[str, StepSize]:
        """The inverse Lipschitz constants of both blocks of variables."""
        return self._step_sizes

    def before_step(self, step: int) -> None:
        """Holds the multipliers still in all but each tenth step."""
        if (step + 1) % ALPHA_EVERY:
            self.alpha_C.grad = None


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
