"""Collateral: what the model should not have lost.

Tensor names carry their shape: N images, C classes, E feature width.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from adu.evaluation.metrics import calibration_error, entropy
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Pictures, Subject


class Collateral(Attack):
    """Looks at the kept domains, at retrieval, and at classes that were no part of the task."""

    title: ClassVar[str] = "collateral"
    asks: ClassVar[str] = "What has it lost that it should have kept?"

    template: str = Field("a picture of a {class}.", description="captions for retrieval")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        kept = material.kept(material.test)
        logits_NC = subject.logits(kept)
        others = {
            "kept accuracy": subject.accuracy(kept),
            "kept calibration error": calibration_error(logits_NC, kept.class_N),
            "forgotten entropy, nats": entropy(subject.logits(subject.forgotten_test)),
            "kept retrieval, mAP": self._retrieval(subject, kept),
        }
        if material.novel is not None and subject.model.any_classes:
            names, pictures = material.novel
            others["other classes, kept domains"] = subject.accuracy_among(
                names, material.kept(pictures)
            )
        return Figures(others=others)

    def _retrieval(self, subject: Subject, pictures: Pictures) -> float:
        """Mean average precision of finding a class' pictures by its caption."""
        classes = subject.material.context.classes
        text_CE = subject.model.caption_features(classes, self.template).cpu()
        return mean_average_precision(subject.features(pictures) @ text_CE.T, pictures.class_N)


def mean_average_precision(similarity_NC: Tensor, class_N: Tensor) -> float:
    """Of a search for each class among all images."""
    from sklearn.metrics import average_precision_score  # takes a second, others need not wait

    precisions = [
        average_precision_score((class_N == c).numpy(), similarity_NC[:, c].numpy())
        for c in class_N.unique().tolist()
    ]
    return float(sum(precisions) / len(precisions))
