"""Benign fine-tuning: what comes back when nobody means it to.

Training on the kept domains alone, as any later user might do, is known to undo unlearning (Lucki
et al., "An Adversarial Perspective on Machine Unlearning for AI Safety", TMLR 2025).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.attacks.tuning import RATES, Rates, best, fine_tuned
from adu.evidence.subject import Subject


class Benign(Attack):
    """Fine-tunes on images of the kept domains alone."""

    title: ClassVar[str] = "benign fine-tuning"
    asks: ClassVar[str] = "Does it come back when somebody trains on the kept domains only?"
    quick: ClassVar[dict[str, Any]] = {"at_steps": (0, 20)}

    shots: int = Field(8, ge=1, description="images of each kept domain and class")
    at_steps: tuple[int, ...] = Field(
        (0, 5, 10, 20, 40), description="steps after which it is tested"
    )
    lr: Rates = RATES
    batch_size: int = Field(16, ge=1, description="images in a step")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        shots = material.kept(material.pool).first(self.shots)
        curve = fine_tuned(
            subject, shots, subject.forgotten_test, self.at_steps, self.lr, self.batch_size
        )
        name = f"{self.shots} kept shots"
        return Figures({name: best(curve)}, curves={name: curve})
