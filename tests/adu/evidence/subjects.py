"""Subjects on the tiny model, for whoever tests an attack."""

from __future__ import annotations

from typing import Any

import torch

from adu.context import Context
from adu.evidence.subject import Material, Subject
from adu.methods import build_method
from adu.training.config import RunConfig

FORGET = ("sketch",)


def tiny_run(method: Any = "baseline", **train: Any) -> RunConfig:
    """A run on the tiny data set that takes a moment."""
    shortest = {"epochs": 1, "batch_size": 6, "warmup_epochs": 0, **train}
    return RunConfig.model_validate({"forget": FORGET, "method": method, "train": shortest})


def tiny_subject(context: Context, method: Any = "baseline", seed: int = 0) -> Subject:
    """A model with random weights of its own on the tiny backbone."""
    run = tiny_run(method, seed=seed)
    torch.manual_seed(seed)
    model = build_method(run.method, context.backbone, context.task(run.forget))
    return Subject(run.method.name, seed, run, model, Material(context, context.manifest, FORGET))
