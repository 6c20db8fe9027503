"""What every attack is: options, and a way to question a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from adu.config import StrictModel
from adu.evidence.subject import Subject


@dataclass(frozen=True)
class Figures:
    """What an attack found.

    Attributes:
        recovered: Accuracy on test images of the forget domains after each variant of the attack.
            These count in the verdict.
        others: Whatever else was measured, by name.
        curves: Accuracy after so many steps, by what was varied.
        untested: What could not be tried on this model, and why.
    """

    recovered: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    untested: dict[str, str] = field(default_factory=dict)


class Attack(StrictModel, ABC):
    """One way to question a model; its fields are its options.

    Attributes:
        title: What it is called on the page.
        asks: What it asks, in a sentence.
        quick: Options in whose place others stand where time is short.
    """

    title: ClassVar[str]
    asks: ClassVar[str]
    quick: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def run(self, subject: Subject) -> Figures:
        """Questions a model, which is left as it was."""
