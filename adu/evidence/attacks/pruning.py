"""Fewer weights: the smallest ones set to zero, as a tool that shrinks models does it."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, get_args

import torch
from pydantic import Field
from torch import Tensor

from adu.evidence.attacks.altered import Part, altered
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Subject


class Pruning(Attack):
    """Sets the smallest weights of each matrix to zero."""

    title: ClassVar[str] = "pruning"
    asks: ClassVar[str] = "Does it come back when the smallest weights are cut?"
    quick: ClassVar[dict[str, Any]] = {"shares": (0.3,)}

    shares: tuple[float, ...] = Field((0.1, 0.3, 0.5), description="of each matrix's weights")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        recovered = {}
        for part in get_args(Part):
            for share in self.shares:
                model = altered(subject, part, partial(pruned, share=share))
                found = subject.material.accuracy(model, subject.forgotten_test)
                recovered[f"{share:.0%}, {part}"] = found
        return Figures(recovered)


def pruned(weight: Tensor, share: float) -> Tensor:
    """A weight without its smallest entries."""
    n_cut = int(share * weight.numel())
    smallest = weight.abs().flatten().topk(n_cut, largest=False).indices
    keep = torch.ones(weight.numel(), dtype=weight.dtype, device=weight.device)
    keep[smallest] = 0
    return weight * keep.view_as(weight)
