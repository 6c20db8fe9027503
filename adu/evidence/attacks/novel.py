"""Novel classes: whether the domain is forgotten for classes that were not trained on.

Held-out classes are asked among themselves, in a label space as large as that of the seen ones:
in one with both, they would lose to classes that were trained.
"""

from __future__ import annotations

from typing import ClassVar

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Pictures, Subject


class Novel(Attack):
    """Compares seen and held-out classes in label spaces of equal size."""

    title: ClassVar[str] = "novel classes"
    asks: ClassVar[str] = "Is the domain forgotten for classes that were not trained on?"

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        if material.novel is None:
            return Figures(untested={self.title: "the model was trained on all classes"})
        if not subject.model.any_classes:
            return Figures(untested={self.title: "the method knows its own classes alone"})
        names, pictures = material.novel
        n = min(len(names), len(material.context.classes))
        if n < 2:
            return Figures(untested={self.title: "there is only one class that was not trained on"})
        if not len(material.forgotten(pictures)):
            return Figures(untested={self.title: "only single classes of a domain were forgotten"})
        seen = self._accuracies(subject, material.context.classes[:n], material.test)
        novel = self._accuracies(subject, names[:n], pictures)
        others = {f"seen, {side}": value for side, value in seen.items()}
        others |= {f"novel, {side}": value for side, value in novel.items()}
        others["suppression, seen"] = suppression(seen)
        others["suppression, novel"] = suppression(novel)
        if others["suppression, seen"] > 0:
            others["transfer"] = others["suppression, novel"] / others["suppression, seen"]
        return Figures(others=others)

    def _accuracies(
        self, subject: Subject, classes: tuple[str, ...], pictures: Pictures
    ) -> dict[str, float]:
        """On both sides, among these classes, which are the first of the pictures'."""
        material = subject.material
        among = pictures.where(pictures.class_N < len(classes))
        return {
            "forgotten": subject.accuracy_among(classes, material.forgotten(among)),
            "kept": subject.accuracy_among(classes, material.kept(among)),
        }


def suppression(accuracies: dict[str, float]) -> float:
    """1 - forgotten / kept: 0 where the forgotten domain is known as well as the kept ones."""
    return 1 - accuracies["forgotten"] / accuracies["kept"] if accuracies["kept"] else 0.0
