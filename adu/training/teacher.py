"""What a run begins with: the model as its method has it, and its teacher if it has one."""

from __future__ import annotations

import torch

from adu.context import Context
from adu.errors import UserError
from adu.methods import Method, build_method
from adu.methods.distilled import Distilled
from adu.training.checkpoint import load_checkpoint
from adu.training.config import RunConfig


def untrained(run: RunConfig, context: Context) -> Method:
    """The model of a run before its first step.

    Raises:
        UserError: If an option does not fit the backbone, or the teacher cannot be read, was
            trained on another backbone, for other classes, domains or captions, to forget
            something else, or has no features to be matched.
    """
    model = build_method(run.method, context.backbone, context.task(run.forget))
    if isinstance(model, Distilled):
        model.learn_from(_teacher(model, run, context))
    return model


@torch.no_grad()
def _teacher(model: Distilled, run: RunConfig, context: Context) -> Method:
    url = model.config.teacher.replace("{seed}", str(run.train.seed))
    teacher, its_run = load_checkpoint(url, context)
    if set(its_run.forget) != set(run.forget):
        raise UserError(
            f"checkpoint {url}: has unlearned {', '.join(its_run.forget)}, "
            f"not {', '.join(run.forget)}"
        )
    # Any features do to see whether both make the same of them.
    scores_CC, its_scores_CC = (each.class_logits(context.text_CE) for each in (model, teacher))
    if model.config.match == "features" and not torch.allclose(scores_CC, its_scores_CC):
        raise UserError(
            f"method.match = 'features': checkpoint {url} has also learned what features are "
            "compared with, which its features do not say (allowed: 'predictions')"
        )
    return teacher
