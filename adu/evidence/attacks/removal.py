"""Drops what was trained: what is shipped beside an unchanged backbone can be left out."""

from __future__ import annotations

from typing import ClassVar

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject
from adu.methods import Method
from adu.methods.zero_shot import ZeroShot, ZeroShotConfig


class Removal(Attack):
    """Asks the backbone alone."""

    title: ClassVar[str] = "trained part left out"
    asks: ClassVar[str] = "What does the backbone say without what was trained?"

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        model = subject.model
        if _is_plain(model):
            reason = (
                "the model's own weights were trained, and in an exported open_clip folder nothing "
                "stands beside them. Whoever has the original backbone has the old model all the "
                "same"
            )
            return Figures(untested={self.title: reason})
        bare = ZeroShot(ZeroShotConfig(), model.backbone, model.task)
        found = subject.material.accuracy(bare, subject.forgotten_test)
        return Figures(recovered={"backbone alone": found})


def _is_plain(model: Method) -> bool:
    """Whether all that was trained are weights of the open_clip model itself."""
    own = model.open_clip_weights()
    return bool(own and len(own) == len(model.deployed()))
