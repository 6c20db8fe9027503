"""What a model is compared with: models that were shown less, and one that knows nothing.

- ``untouched``: the pre-trained model as it is, which has forgotten nothing;
- ``never_shown``: the same method, seed and shots, but none of the forget domains;
- ``baseline``: the paper's, with the same shots;
- ``forget_only``: the Baseline with the forget loss alone;
- ``knows_nothing``: the untouched model with the weights of its image tower shuffled, each among
  its own: what an attack gets out of this one is the attack's own doing.

No CLIP is known that was pre-trained without a domain. Where there is one (`never_saw`), it stands
in the place of the model that knows nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from adu.context import Context
from adu.data.decoded import ImageSet
from adu.errors import UserError
from adu.evidence.subject import copied
from adu.methods import Method, Task
from adu.methods.baseline import BaselineConfig, PromptConfig
from adu.methods.zero_shot import ZeroShot, ZeroShotConfig
from adu.models.backbone import Backbone, BackboneConfig
from adu.training.config import RunConfig
from adu.training.trainer import Trainer

TrainedReference = Literal["never_shown", "baseline", "forget_only"]
NEVER_SHOWN: TrainedReference = "never_shown"
UNTOUCHED = "untouched"
KNOWS_NOTHING = "knows_nothing"
NEVER_SAW = "never_saw"


def reference_run(name: TrainedReference, run: RunConfig) -> RunConfig:
    """The run that trains a reference: as the model's own in all that is not its point."""
    if name == NEVER_SHOWN:
        return run
    prompts = run.method if isinstance(run.method, PromptConfig) else PromptConfig()
    given = {field: getattr(prompts, field) for field in PromptConfig.model_fields}
    weights = {"memorize_weight": 0.0 if name == "forget_only" else 1.0, "forget_weight": 1.0}
    return run.model_copy(update={"method": BaselineConfig(**{**given, **weights})})


def train_reference(name: TrainedReference, run: RunConfig, context: Context) -> Method:
    """Trains a reference for a model.

    Args:
        name: Which.
        run: What trained the model.
        context: What it was trained on.
    """
    trainer = Trainer(reference_run(name, run), shown_to(name, run, context))
    for _ in trainer.epochs():
        pass
    return trainer.model.eval()


def shown_to(name: str, run: RunConfig, context: Context) -> Context:
    """What a run is trained on: of ``never_shown``, all but the images of the forget domains.

    Args:
        name: What the run stands for.
        run: What is trained.
        context: All that there is.
    """
    if name != NEVER_SHOWN:
        return context
    images = context.train
    is_kept_N = context.task(run.forget).retain_mask(images.class_N, images.domain_N)
    other = replace(context)
    other.train = _subset(images, is_kept_N.nonzero()[:, 0].tolist())
    return other


def _subset(images: ImageSet, rows: list[int]) -> ImageSet:
    return ImageSet(
        [images.image(row).permute(1, 2, 0).numpy() for row in rows],
        [images.image_ids[row] for row in rows],
        images.class_N[rows].tolist(),
        images.domain_N[rows].tolist(),
    )


def untouched(backbone: Backbone, task: Task) -> Method:
    """The pre-trained model as it is."""
    return ZeroShot(ZeroShotConfig(), backbone, task)


def knows_nothing(backbone: Backbone, task: Task, seed: int) -> Method:
    """The pre-trained model with an image tower whose weights are shuffled, each among its own."""
    blank = copied(backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in blank.clip.visual.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return untouched(blank, task)


def never_saw(name: str, context: Context, task: Task) -> Method:
    """A model that was pre-trained without the forget domains, which only its maker can know.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
        context: What it is compared on.
        task: The task of the model that it is compared with.

    Raises:
        UserError: If it cannot be loaded, or wants its images in another way.
    """
    from adu.models.openclip import load_backbone  # takes seconds, which others need not wait

    config = BackboneConfig(name=name, template=task.template)
    backbone = load_backbone(config, context.device)
    if backbone.transform != context.backbone.transform:
        raise UserError(f"never-saw model '{name}': prepares images in another way than the model")
    text_CE = backbone.text_features(task.classes, task.template)
    return untouched(backbone, replace(task, text_CE=text_CE))
