"""The question that the model was trained for: what a paper reports."""

from __future__ import annotations

from typing import ClassVar

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject


class Asked(Attack):
    """Asks for the class as the model was trained to be asked."""

    title: ClassVar[str] = "asked as trained"
    asks: ClassVar[str] = "What does it say when it is asked as it was trained?"

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        return Figures(recovered={"asked": subject.accuracy(subject.forgotten_test)})
