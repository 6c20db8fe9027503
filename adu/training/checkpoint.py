"""Checkpoints: what was trained and nothing else, in safetensors, with a card that says what it is.

The frozen backbone is named in the card, with its fingerprint, not copied.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch
import torch

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import Context
from adu.errors import UserError
from adu.methods import Method, Task, build_method
from adu.methods.plugins import check_imported
from adu.models.backbone import Backbone, BackboneConfig
from adu.training.config import RunConfig

CARD_KEY = "adu"
# Version 1 has no fingerprint, and holds what is needed in training alone, too.
CARD_VERSION = 2


class Card(StrictModel):
    """What a checkpoint says of itself.

    Attributes:
        version: Of the card.
        run: The run that trained it.
        backbone: The frozen model and the caption of a class.
        fingerprint: Of the backbone's weights and preparation of images; None in version 1.
        classes: Names of the classes, in the order of their numbers.
        domains: Names of the domains, in the order of their numbers.
        data: What it was trained on.
        manifest_digest: Hash over the content of that.
    """

    version: int
    run: RunConfig
    backbone: BackboneConfig
    fingerprint: str | None = None
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    data: dict[str, Any]
    manifest_digest: str


def make_card(run: RunConfig, context: Context) -> Card:
    """What is to be said of what a run has trained."""
    return Card(
        version=CARD_VERSION,
        run=run,
        backbone=context.config.backbone,
        fingerprint=context.backbone.fingerprint,
        classes=context.classes,
        domains=context.domains,
        data=context.config.data.model_dump(mode="json"),
        manifest_digest=context.manifest.digest,
    )


def checkpoint_bytes(model: Method, run: RunConfig, context: Context) -> bytes:
    """Serialises what of a trained model is needed to classify; the card is its metadata."""
    return serialised(model, make_card(run, context))


def serialised(model: Method, card: Card) -> bytes:
    """Serialises a trained model with a card that is there already."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.deployed().items()}
    text = json.dumps(card.model_dump(mode="json", by_alias=True))
    return safetensors.torch.save(tensors, metadata={CARD_KEY: text})


def read_card(data: bytes, source: str) -> Card:
    """The card of a checkpoint.

    Args:
        data: The checkpoint.
        source: Where it comes from, for messages.

    Raises:
        UserError: If the bytes are no checkpoint of this project, of a newer version, or if the
            card lacks something.
    """
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        values = json.loads(header["__metadata__"][CARD_KEY])
        version = values["version"]
        is_newer = version > CARD_VERSION
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"checkpoint {source}: is not one of ours (safetensors with a card)"
        ) from error
    if is_newer:
        raise UserError(
            f"checkpoint {source}: card version {version} is newer than {CARD_VERSION}, the newest "
            "that this version reads"
        )
    check_imported(_method_name(values), f"checkpoint {source}")
    return parse_config(Card, values, f"checkpoint {source}: card")


def load_checkpoint(url: str, context: Context) -> tuple[Method, RunConfig]:
    """Rebuilds a trained model on a loaded backbone.

    Raises:
        UserError: If it is broken, or was trained for other classes, domains or captions, or on
            another backbone.
    """
    return open_checkpoint(storage.read_bytes(url), url, context)


def open_checkpoint(data: bytes, url: str, context: Context) -> tuple[Method, RunConfig]:
    """The same of a checkpoint that was read already; see `load_checkpoint`."""
    card = read_card(data, url)
    check_trained_for(card, f"checkpoint {url}", context.classes, context.domains)
    template = context.config.backbone.template
    if card.backbone.template != template:
        raise UserError(
            f"checkpoint {url}: was trained with the caption '{card.backbone.template}', "
            f"not '{template}'"
        )
    return rebuild(data, url, card, context.backbone, context.task(card.run.forget)), card.run


def check_trained_for(
    card: Card, source: str, classes: tuple[str, ...], domains: tuple[str, ...]
) -> None:
    """Refuses images that a model was not trained for.

    Args:
        card: The model's.
        source: What it is called.
        classes: Of the images.
        domains: Of the images.

    Raises:
        UserError: If the model's are others.
    """
    for field, trained, have in (
        ("classes", card.classes, classes),
        ("domains", card.domains, domains),
    ):
        if trained != have:
            raise UserError(
                f"{source}: was trained for {field} {', '.join(trained)}; "
                f"the images have {', '.join(have)}"
            )


def rebuild(data: bytes, source: str, card: Card, backbone: Backbone, task: Task) -> Method:
    """A trained model out of the bytes of its checkpoint.

    Args:
        data: The checkpoint.
        source: Where it comes from, for messages.
        card: Its card.
        backbone: The frozen model.
        task: What it has unlearned.

    Raises:
        UserError: If it is broken, or was trained on another backbone.
    """
    if card.fingerprint not in (None, backbone.fingerprint):
        raise UserError(
            f"checkpoint {source}: was trained on backbone '{card.backbone.name}'; "
            f"'{backbone.name}' has other weights or prepares images in another way"
        )
    model = build_method(card.run.method, backbone, task)
    # What only training needs is in no checkpoint, and is not made up either.
    deployed = model.deployed()
    unused = {n: torch.zeros_like(p) for n, p in model.trainable().items() if n not in deployed}
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"checkpoint {source}: is broken: {error}") from error
    try:
        model.load_state_dict({**unused, **weights}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {source}: does not fit backbone {backbone.name}: {reason}"
        ) from error
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(f"checkpoint {source}: its weight {name} holds NaN or infinity")
    return model.to(next(backbone.clip.parameters()).device)


def _method_name(values: dict[str, Any]) -> Any:
    """How a card that is not checked yet names its method."""
    run = values.get("run")
    method = run.get("method") if isinstance(run, dict) else None
    return method.get("name") if isinstance(method, dict) else method
