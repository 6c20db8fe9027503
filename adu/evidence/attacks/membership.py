"""Membership: whether the shots can be told from other pictures of the forgotten domain.

Each image's likelihood ratio p(class) / p_reference(class), the reference being the same method
never shown the domain. With one reference, RMIA (Zarifzadeh et al., ICML 2024) ranks images by it,
and it is the calibrated loss of Watson et al. (ICLR 2022); LiRA (Carlini et al., S&P 2022) needs
many references.

Tensor names carry their shape: N images, C classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Pictures, Subject


class Membership(Attack):
    """Tells the shots from images of the same domains that were not trained on."""

    title: ClassVar[str] = "membership"
    asks: ClassVar[str] = "Can one tell which pictures it was trained to forget?"

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        if subject.never_shown is None:
            return Figures(untested={self.title: "has no reference that was never shown them"})
        if not len(subject.material.fresh):
            return Figures(untested={self.title: "all training images were trained on"})
        others = {}
        for side in ("forgotten", "kept"):
            of_side = getattr(subject.material, side)
            inside, outside = of_side(subject.material.members), of_side(subject.material.fresh)
            others[f"AUC, {side} shots"] = auc(_ratio(subject, inside), _ratio(subject, outside))
        return Figures(others=others)


def auc(inside_N: Tensor, outside_N: Tensor) -> float:
    """Area under the ROC curve of telling two sets apart, whichever scores higher; 0.5: chance."""
    from sklearn.metrics import roc_auc_score  # takes a second, which others need not wait

    scores = torch.cat([inside_N, outside_N]).numpy()
    truth = np.repeat([1, 0], [len(inside_N), len(outside_N)])
    area = float(roc_auc_score(truth, scores))
    # To have been pushed down tells as much as to have been pulled up.
    return max(area, 1 - area)


@torch.no_grad()
def _ratio(subject: Subject, pictures: Pictures) -> Tensor:
    assert subject.never_shown is not None
    reference = subject.never_shown
    features_NE = subject.material.features(reference, pictures)
    features_NE = features_NE.to(reference.task.text_CE.device)
    reference_NC = reference.class_logits(features_NE).cpu()
    return _log_p(subject.logits(pictures), pictures) - _log_p(reference_NC, pictures)


def _log_p(logits_NC: Tensor, pictures: Pictures) -> Tensor:
    """Of the true class."""
    return logits_NC.double().log_softmax(dim=-1).gather(1, pictures.class_N[:, None])[:, 0]
