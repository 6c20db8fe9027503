"""Fewer bits: rounding to INT8 or INT4 can round an unlearning step away.

Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, get_args

from pydantic import Field
from torch import Tensor

from adu.evidence.attacks.altered import Part, altered
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject


class Precision(Attack):
    """Rounds weights to integers, a scale for each row."""

    title: ClassVar[str] = "fewer bits"
    asks: ClassVar[str] = "Does it come back when weights are rounded to INT8 or INT4?"

    bits: tuple[int, ...] = Field((8, 4), description="of a weight")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        recovered = {}
        for part in get_args(Part):
            for bits in self.bits:
                model = altered(subject, part, partial(quantised, bits=bits))
                found = subject.material.accuracy(model, subject.forgotten_test)
                recovered[f"INT{bits}, {part}"] = found
        return Figures(recovered)


def quantised(weight: Tensor, bits: int) -> Tensor:
    """The nearest multiples of each row's step, symmetric about zero."""
    most = 2 ** (bits - 1) - 1
    step = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / most
    step = step.view(-1, *[1] * (weight.ndim - 1))
    return (weight / step).round() * step
