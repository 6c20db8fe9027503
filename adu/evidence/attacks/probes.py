"""Probes: whether the features still tell the classes, whatever the model says.

A probe learns, so that its accuracy is not all the model's: the same probe on a model that knows
nothing stands beside it, and the length of an online code (Voita & Titov, "Information-Theoretic
Probing with Minimum Description Length", EMNLP 2020) says how much of the labels the features give
away before the probe has seen them.

Tensor names carry their shape: N images, E feature width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.linear_probe import DOMAIN_PROBE_C, fit_probe, probe_accuracy
from adu.evidence.subject import Pictures, Subject

# Keeps a code of finite length where a probe is sure and wrong.
SMALLEST_P = 1e-6


class Probes(Attack):
    """Fits class and domain probes on the image features."""

    title: ClassVar[str] = "probes on features"
    asks: ClassVar[str] = "Do the image features still tell the classes of the forgotten domain?"
    quick: ClassVar[dict[str, Any]] = {"shots": (1, 8)}

    shots: tuple[int, ...] = Field((1, 2, 4, 8, 16), description="images of each class")
    neighbours: int = Field(3, ge=1, description="of the kNN probe, on the most shots")
    c: float = Field(10.0, gt=0, description="inverse L2 penalty of the class probes")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        forgotten, kept = (part(material.pool) for part in (material.forgotten, material.kept))
        sets = {k: forgotten.first(k) for k in self.shots}
        recovered = {
            f"linear, {k} shot{'s' * (k > 1)}": self._linear(subject, shots)
            for k, shots in sets.items()
        }
        recovered["linear, kept domains only"] = self._linear(subject, kept)
        recovered["kNN"] = self._nearest(subject, forgotten.first(max(self.shots)))
        others = {
            "compression of the labels": _compression(subject, list(sets.values()), self.c),
            "domain told": _domain_told(subject),
        }
        return Figures(recovered, others)

    def _linear(self, subject: Subject, shots: Pictures) -> float:
        probe = fit_probe(subject.features(shots), shots.class_N, self.c)
        test = subject.forgotten_test
        return probe_accuracy(probe, subject.features(test), test.class_N)

    def _nearest(self, subject: Subject, shots: Pictures) -> float:
        from sklearn.neighbors import KNeighborsClassifier  # takes a second, others need not wait

        probe = KNeighborsClassifier(min(self.neighbours, len(shots)), metric="cosine")
        probe.fit(subject.features(shots).numpy(), shots.class_N.numpy())
        test = subject.forgotten_test
        return float(probe.score(subject.features(test).numpy(), test.class_N.numpy()))


def _compression(subject: Subject, sets: list[Pictures], c: float) -> float:
    """How many times shorter the labels' online code is than a uniform one; 1: nothing is known.

    Each set holds the one before. The first is sent uniformly, each next by the probe that was
    fitted on the one before.
    """
    bits_each = math.log2(len(subject.material.context.classes))
    length = len(sets[0]) * bits_each
    for known, more in zip(sets, sets[1:], strict=False):
        probe = fit_probe(subject.features(known), known.class_N, c)
        new = Pictures(more.images, [row for row in more.rows if row not in known.rows])
        if not len(new):
            continue
        p_NC = probe.predict_proba(subject.features(new).numpy())
        p_N = p_NC[np.arange(len(new)), np.searchsorted(probe.classes_, new.class_N.numpy())]
        length -= float(np.log2(np.maximum(p_N, SMALLEST_P)).sum())
    return len(sets[-1]) * bits_each / length


def _domain_told(subject: Subject) -> float:
    pool, test = subject.material.pool, subject.material.test
    probe = fit_probe(subject.features(pool), pool.domain_N, DOMAIN_PROBE_C)
    return probe_accuracy(probe, subject.features(test), test.domain_N)
