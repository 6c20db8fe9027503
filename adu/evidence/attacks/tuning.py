"""Fine-tuning, as whoever has the weights can do it: of the image tower and what was trained.

Tensor names carry their shape: B images of a batch, C channels, S the model's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from adu.data.preprocess import normalised
from adu.evidence.subject import Material, Pictures, Subject, copied
from adu.methods import Method

Curve = list[tuple[int, float]]

# What brings a small tower's domain back makes a larger one forget everything.
RATES = (3e-4, 3e-5)
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    Field(min_length=1, description="of AdamW: all are tried, and the one that gets most counts"),
]


def fine_tuned(
    subject: Subject,
    shots: Pictures,
    test: Pictures,
    at_steps: Sequence[int],
    rates: Sequence[float],
    batch_size: int,
) -> Curve:
    """Trains copies of a model on labelled images with the cross-entropy.

    Args:
        subject: The model, which stays as it is.
        shots: What it is trained on.
        test: What it is asked about.
        at_steps: After how many steps, in ascending order.
        rates: Of AdamW, for a copy each.
        batch_size: Images in a step, or as many as there are.

    Returns:
        Steps and accuracy on `test` of the copy that came to the highest.
    """
    curves = (_tuned(subject, shots, test, at_steps, lr, batch_size) for lr in rates)
    return max(curves, key=best)


def _tuned(
    subject: Subject,
    shots: Pictures,
    test: Pictures,
    at_steps: Sequence[int],
    lr: float,
    batch_size: int,
) -> Curve:
    backbone = copied(subject.model.backbone)
    model = subject.on(backbone)
    tower = [parameter.requires_grad_() for parameter in backbone.clip.visual.parameters()]
    optimizer = torch.optim.AdamW([*tower, *model.deployed().values()], lr=lr)
    next_batch = _batches(len(shots), batch_size, subject.seed)
    curve: Curve = []
    for step in range(at_steps[-1] + 1):
        if step in at_steps:
            curve.append((step, subject.material.accuracy(model, test)))
        if step < at_steps[-1]:
            _step(model, subject.material, shots, next_batch(), optimizer)
    return curve


def best(curve: Curve) -> float:
    """The highest accuracy on the way: whoever relearns stops when it is there."""
    return max(accuracy for _, accuracy in curve)


def _step(
    model: Method,
    material: Material,
    shots: Pictures,
    places: list[int],
    optimizer: torch.optim.Optimizer,
) -> None:
    model.train()
    device = model.task.text_CE.device
    images_BCSS = normalised(shots.pixels(places).to(device), model.backbone.transform)
    class_B = shots.class_N[places].to(device)
    optimizer.zero_grad()
    with material.autocast():
        logits_BC = model(images_BCSS).logits_BC
    F.cross_entropy(logits_BC, class_B).backward()
    optimizer.step()


def _batches(n_images: int, batch_size: int, seed: int) -> Callable[[], list[int]]:
    """Gives the places of one batch after another, all images before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []

    def following() -> list[int]:
        nonlocal waiting
        if not waiting:
            waiting = torch.randperm(n_images, generator=generator).tolist()
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        return batch

    return following
