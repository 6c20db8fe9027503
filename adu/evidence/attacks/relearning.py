"""Relearning: how few images and steps bring a domain back.

What was only suppressed comes back faster than what was never known (Tarun et al., "Fast Yet
Effective Machine Unlearning", TNNLS 2023: anamnesis index; Hu et al., "Jogging the Memory of
Unlearned Models Through Targeted Relearning Attacks", ICLR 2025).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.attacks.tuning import RATES, Rates, best, fine_tuned
from adu.evidence.subject import Subject


class Relearning(Attack):
    """Fine-tunes on k shots of the forget domains."""

    title: ClassVar[str] = "relearning"
    asks: ClassVar[str] = "How fast does it come back with a few images of the forgotten domain?"
    quick: ClassVar[dict[str, Any]] = {"shots": (8,), "at_steps": (0, 5, 20)}

    shots: tuple[int, ...] = Field((1, 2, 4, 8, 16), description="images of each class")
    at_steps: tuple[int, ...] = Field(
        (0, 1, 2, 5, 10, 20, 40), description="steps after which it is tested"
    )
    lr: Rates = RATES
    batch_size: int = Field(16, ge=1, description="images in a step")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        available = material.forgotten(material.pool)
        curves = {
            f"{k} shot{'s' * (k > 1)}": fine_tuned(
                subject,
                available.first(k),
                subject.forgotten_test,
                self.at_steps,
                self.lr,
                self.batch_size,
            )
            for k in self.shots
        }
        return Figures({name: best(curve) for name, curve in curves.items()}, curves=curves)
