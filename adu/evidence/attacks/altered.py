"""A model with changed weights: of what was trained, or of the backbone that it stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from adu.evidence.subject import Subject, copied
from adu.methods import Method

Part = Literal["trained", "backbone"]


@torch.no_grad()
def altered(subject: Subject, part: Part, change: Callable[[Tensor], Tensor]) -> Method:
    """A copy of a model with one part changed, matrix by matrix.

    Biases and norms stay: tools leave them alone, too.

    Args:
        subject: The model.
        part: Which weights.
        change: Gives a weight's new values.
    """
    backbone = copied(subject.model.backbone)
    if part == "backbone":
        _change(backbone.clip.parameters(), change)
    # Captions are read by the changed backbone.
    model = subject.on(backbone)
    if part == "trained":
        _change(model.deployed().values(), change)
    return model


def _change(weights: Iterable[Tensor], change: Callable[[Tensor], Tensor]) -> None:
    for weight in weights:
        if weight.ndim > 1:
            weight.copy_(change(weight))
