"""Mem, For and H, what a run is judged by (Kawamura et al., section 5), and certainty.

Accuracies are fractions in [0, 1]; tables print them as percentages. Tensor names carry their
shape: N images, C classes, D domains, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """How well a model keeps the retain domains and forgets the others.

    Attributes:
        mem: Accuracy over all images to retain.
        for_: Error rate over all images to forget.
        h: Harmonic mean of ``mem`` and ``for_``, of this run.
        accuracy_by_domain: Accuracy of every domain by itself.
        n_by_domain: Number of images behind each accuracy.
        distance: How much of the forget domains attacks get out of the model, from 0 to 1 (see
            `adu.evidence.distance`); None where that was not measured.
    """

    mem: float
    for_: float
    h: float
    accuracy_by_domain: dict[str, float]
    n_by_domain: dict[str, int]
    distance: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The figures under the names that the paper prints them with, the distance if known."""
        figures = {"mem": self.mem, "for": self.for_, "h": self.h}
        return figures if self.distance is None else {**figures, "distance": self.distance}


def harmonic_mean(mem: float, for_: float) -> float:
    """H = 2 Mem For / (Mem + For); 0 where both are 0."""
    return 2 * mem * for_ / (mem + for_) if mem + for_ > 0 else 0.0


def scores_from_counts(
    counts_2CD: np.ndarray, forget_CD: np.ndarray, domains: Sequence[str]
) -> Scores:
    """Computes the scores from counts of images.

    Args:
        counts_2CD: Rightly classified images, and all images, of each class in each domain.
        forget_CD: True where they are to be forgotten.
        domains: Names of the domains.

    Raises:
        ValueError: If there is no image to retain, or none to forget.
    """
    correct_CD, total_CD = counts_2CD
    n_retain, n_forget = total_CD[~forget_CD].sum(), total_CD[forget_CD].sum()
    if n_retain == 0 or n_forget == 0:
        raise ValueError(f"no images to score: {n_retain} retain, {n_forget} forget")
    mem = float(correct_CD[~forget_CD].sum() / n_retain)
    for_ = float(1 - correct_CD[forget_CD].sum() / n_forget)
    correct = dict(zip(domains, correct_CD.sum(axis=0).tolist(), strict=True))
    total = dict(zip(domains, total_CD.sum(axis=0).tolist(), strict=True))
    accuracy = {domain: correct[domain] / n for domain, n in total.items() if n}
    return Scores(mem, for_, harmonic_mean(mem, for_), accuracy, total)


def entropy(logits_NC: Tensor) -> float:
    """Mean entropy of the class probabilities, in nats: 0 is sure, log C knows nothing."""
    log_p_NC = logits_NC.double().log_softmax(dim=-1)
    return -(log_p_NC.exp() * log_p_NC).sum(dim=-1).mean().item()


def calibration_error(logits_NC: Tensor, class_N: Tensor) -> float:
    """Expected calibration error (Guo et al., ICML 2017, equation 5).

    The gap between confidence and accuracy in each of `CALIBRATION_BINS` equally wide bins of
    confidence, weighted by the images in it.
    """
    confidence_N, predicted_N = logits_NC.double().softmax(dim=-1).max(dim=-1)
    right_N = (predicted_N == class_N).double()
    # A bin holds its upper edge: a confidence of 1 falls into the last.
    bin_N = (confidence_N * CALIBRATION_BINS).ceil().long().clamp(min=1) - 1
    zeros_K = torch.zeros(CALIBRATION_BINS, dtype=torch.double, device=logits_NC.device)
    gap_K = zeros_K.index_add(0, bin_N, confidence_N - right_N)
    return (gap_K.abs().sum() / len(class_N)).item()
