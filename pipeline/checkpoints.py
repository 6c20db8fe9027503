"""Opens checkpoints on a manifest: the model that they stand on, and what they were trained for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adu.context import Context, ContextConfig, open_context
from adu.data.decoded import DataConfig
from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.training.checkpoint import Card
from adu.training.config import RunConfig


def context_of(card: Card, whole: Manifest, data: DataConfig, backbone: str | None) -> Context:
    """Loads a checkpoint's model, and of the manifest what it was trained on.

    Args:
        card: The checkpoint's card.
        whole: The manifest with all its classes and domains.
        data: How its images are read.
        backbone: Where the backbone is, if not where the card says.

    Raises:
        UserError: If the model cannot be loaded, or a domain cannot be tested.
    """
    name = backbone or card.backbone.name
    config = ContextConfig(
        backbone=card.backbone.model_copy(update={"name": name}),
        data=data,
    )
    manifest = whole.select(card.classes, card.domains)
    # Classes or domains that it lacks are told by the checkpoint, where nothing is left at once.
    manifest = manifest if manifest.classes and manifest.domains else whole
    manifest.check_test_images()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return open_context(config, manifest, device)


def check_same(checkpoints: Sequence[str], runs: Sequence[RunConfig]) -> None:
    """Checks that several checkpoints differ in nothing but their seeds.

    Raises:
        UserError: Naming the first one that differs in something else, or not at all.
    """
    seeds = [run.train.seed for run in runs]
    for i, (checkpoint, run) in enumerate(zip(checkpoints, runs, strict=True)):
        train = run.train.model_copy(update={"seed": seeds[0]})
        if run.model_copy(update={"train": train}) != runs[0]:
            raise UserError(
                f"checkpoint {checkpoint}: is of another run than {checkpoints[0]} "
                "(allowed together: the same run with different seeds)"
            )
        if run.train.seed in seeds[:i]:
            raise UserError(f"checkpoint {checkpoint}: seed {run.train.seed} is there already")
