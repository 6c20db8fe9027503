"""What a training run is asked for: what to forget, by which method, trained how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from adu.config import StrictModel
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.methods.recipes import recipe_of
from adu.models.precision import Precision


class TrainConfig(StrictModel):
    """How a run is trained.

    Defaults are the paper's and its code family's (CoOp, MaPLe), but for the warm-up and for what
    the paper leaves open; `recipe` has them to the letter.
    """

    epochs: int = Field(50, ge=1, description="passes over the few-shot training images")
    batch_size: int = Field(32, ge=2, description="images in a batch, over all workers")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="what takes the steps")
    lr: float = Field(0.0025, gt=0, description="learning rate after warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; AdamW's first beta")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD, or AdamW's decoupled one")
    warmup: Literal["linear", "constant"] = Field(
        "linear", description="lr rises with every step, or is warmup_lr until warm-up is over"
    )
    warmup_epochs: int = Field(
        2, ge=0, validate_default=True, description="first epochs, in which lr is warmed up"
    )
    warmup_lr: float = Field(1e-5, ge=0, description="learning rate of a constant warm-up")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of lr, after warm-up")
    sampling: Literal["balanced", "plain"] = Field(
        "balanced", description="whether every batch has equally many images of each domain"
    )
    logit_factor: float = Field(
        1.0, gt=0, description="on the model's logit scale in training; below 1: softer predictions"
    )
    grad_clip: float | None = Field(
        None, gt=0, description="largest norm of all gradients together; unset: no limit"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate a moving average of the weights; unset: the last"
    )
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="smallest share of an image that a training crop covers"
    )
    hflip: bool = Field(True, description="whether half of the training images are mirrored")
    precision: Precision = Field(
        "fp32", description="in which images are seen, in training, validation and tests"
    )
    seed: int = Field(0, ge=0, description="of the initial weights, batches and augmentation")

    @field_validator("warmup_epochs")
    @classmethod
    def _leaves_something_to_train(cls, warmup_epochs: int, info: ValidationInfo) -> int:
        epochs, warmup = info.data.get("epochs", math.inf), info.data.get("warmup")
        if warmup == "constant" and warmup_epochs >= epochs:
            raise ValueError(f"must be below epochs ({epochs}) where warm-up is constant")
        return warmup_epochs


class RunConfig(StrictModel):
    """One training run: what to forget, by which method, trained how."""

    forget: tuple[str, ...]
    method: MethodConfig = AduConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        return with_recipe(values)


def with_recipe(values: Any) -> Any:
    """Values of ``method`` and ``train``: a recipe says how it is trained, too, where they do not.

    Args:
        values: Of a configuration that has both, before they are validated.
    """
    recipe = recipe_of(values.get("method")) if isinstance(values, Mapping) else None
    if recipe is None:
        return values
    train = values.get("train", {})
    if isinstance(train, TrainConfig):
        train = {name: getattr(train, name) for name in train.model_fields_set}
    return {**values, "train": {**recipe.train, **train}}
