"""ADU as the paper describes it, as its authors' code does it, and ours, under a name each.

The two differ in more than details; adu/README.md has them side by side. A recipe is every option
that the paper or the code settles, and fills in only what a configuration does not set itself:
`method: {name: adu, recipe: authors, lambda: 1}` keeps its lambda.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RecipeName = Literal["paper", "authors", "stable"]


@dataclass(frozen=True)
class Recipe:
    """Values of options by name.

    Attributes:
        method: Of `adu.methods.adu.AduConfig`.
        train: Of `adu.training.config.TrainConfig`.
    """

    method: dict[str, Any]
    train: dict[str, Any]


# SGD and schedule of the code family (CoOp, MaPLe), which the paper names no other for.
TRAIN = {
    "epochs": 50,
    "optimizer": "sgd",
    "lr": 0.0025,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup": "constant",
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "schedule": "cosine",
    "logit_factor": 1.0,
    "grad_clip": None,
    "ema_decay": None,
    "crop_scale_min": 0.08,
    "hflip": True,
}

RECIPES: dict[str, Recipe] = {
    # Kernel, block and batches are open in the paper: see "Where the paper leaves a gap".
    "paper": Recipe(
        method={
            "n_ctx": 8,
            "gamma": 30.0,
            "lambda": 10.0,
            "forget_loss": "uniform",
            "mmd_on": "features",
            "text_n_ctx": 0,
        },
        train=TRAIN,
    ),
    # The Office-Home script; 9 of 12 blocks, and InstaPG in the last of them.
    "authors": Recipe(
        method={
            "n_ctx": 8,
            "gamma": 30.0,
            "lambda": 0.5,
            "forget_loss": "entropy",
            "mmd_on": "domain_logits",
            "mmd_kernel": "pair_median",
            "mmd_estimator": "biased",
            "instapg_layer": -1,
            "instapg_feed_forward": True,
            "instapg_residual": False,
            "instapg_mode": "carry",
            "text_n_ctx": 4,
            "text_init": "a photo of a",
            "text_depth": None,
        },
        train={**TRAIN, "sampling": "plain", "batch_size": 8},
    ),
    # Ours, for small models and few epochs: more prompts, smaller weights, a softer scale, AdamW.
    "stable": Recipe(
        method={"n_ctx": 32, "gamma": 0.5, "lambda": 2.0},
        train={"optimizer": "adamw", "lr": 0.004, "weight_decay": 0.01, "logit_factor": 0.5},
    ),
}


def recipe_of(method: Any) -> Recipe | None:
    """The recipe that a method's configuration names, or plain values for one."""
    name = method.get("recipe") if isinstance(method, Mapping) else getattr(method, "recipe", None)
    return RECIPES.get(name) if isinstance(name, str) else None
