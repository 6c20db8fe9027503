"""Mem, For and H: what a run is judged by (Kawamura et al., section 5).

All values are fractions in [0, 1]; tables print them as percentages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """How well a model keeps the retain domains and forgets the others.

    Attributes:
        mem: Accuracy over all images of the retain domains.
        for_: Error rate over all images of the forget domains.
        h: Harmonic mean of ``mem`` and ``for_``, of this run.
        accuracy_by_domain: Accuracy of every domain by itself.
        n_by_domain: Number of images behind each accuracy.
    """

    mem: float
    for_: float
    h: float
    accuracy_by_domain: dict[str, float]
    n_by_domain: dict[str, int]

    def as_dict(self) -> dict[str, float]:
        """The three figures under the names that the paper prints them with."""
        return {"mem": self.mem, "for": self.for_, "h": self.h}


def harmonic_mean(mem: float, for_: float) -> float:
    """H = 2 Mem For / (Mem + For); 0 where both are 0."""
    return 2 * mem * for_ / (mem + for_) if mem + for_ > 0 else 0.0


def scores_from_counts(
    correct: Mapping[str, int], total: Mapping[str, int], forget: Sequence[str]
) -> Scores:
    """Computes the scores from per-domain counts.

    Args:
        correct: Rightly classified images of each domain.
        total: All images of each domain.
        forget: The forget domains; every other one is a retain domain.

    Raises:
        ValueError: If the retain or the forget domains hold no image.
    """
    retain = [domain for domain in total if domain not in forget]
    n_retain = sum(total[domain] for domain in retain)
    n_forget = sum(total[domain] for domain in forget)
    if n_retain == 0 or n_forget == 0:
        raise ValueError(f"no images to score: {n_retain} retain, {n_forget} forget")
    mem = sum(correct[domain] for domain in retain) / n_retain
    for_ = 1 - sum(correct[domain] for domain in forget) / n_forget
    accuracy = {domain: correct[domain] / n for domain, n in total.items() if n}
    return Scores(mem, for_, harmonic_mean(mem, for_), accuracy, dict(total))
