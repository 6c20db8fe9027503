"""Drops what was trained: what is shipped beside an unchanged backbone can be left out."""

from __future__ import annotations

from typing import ClassVar

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject, model_accuracy
from adu.methods.zero_shot import ZeroShot, ZeroShotConfig


class Removal(Attack):
    """Asks the backbone alone."""

    title: ClassVar[str] = "trained part left out"
    asks: ClassVar[str] = "What does the backbone say without what was trained?"

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        bare = ZeroShot(ZeroShotConfig(), subject.model.backbone, subject.model.task)
        return Figures(recovered={"backbone alone": model_accuracy(bare, subject.forgotten_test)})
