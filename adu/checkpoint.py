"""Checkpoints: what was trained and nothing else, in safetensors, with a card that says what it is.

The frozen backbone is named in the card, not copied.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch

from adu import storage
from adu.context import Context
from adu.errors import UserError
from adu.methods import Method, build_method
from adu.trainer import RunConfig

CARD_KEY = "adu"
CARD_VERSION = 1


def checkpoint_bytes(model: Method, run: RunConfig, context: Context) -> bytes:
    """Serialises what a run has trained.

    The card (``metadata["adu"]``, JSON) holds the run's configuration, classes, domains, the
    backbone's name and template, and the manifest's digest.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.trainable().items()}
    card = {
        "version": CARD_VERSION,
        "run": run.model_dump(mode="json", by_alias=True),
        "backbone": context.config.backbone.model_dump(mode="json"),
        "classes": context.classes,
        "domains": context.domains,
        "data": context.config.data.model_dump(mode="json"),
        "manifest_digest": context.manifest.digest,
    }
    return safetensors.torch.save(tensors, metadata={CARD_KEY: json.dumps(card)})


def read_card(data: bytes, source: str) -> dict[str, Any]:
    """The card of a checkpoint.

    Raises:
        UserError: If the bytes are no checkpoint of this project.
    """
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        return json.loads(header["__metadata__"][CARD_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint {source}: is not one of ours (safetensors with a card)"
        ) from error


def load_checkpoint(url: str, context: Context) -> tuple[Method, RunConfig]:
    """Rebuilds a trained model on a loaded backbone.

    Raises:
        UserError: If it was trained for other classes or another backbone.
    """
    data = storage.read_bytes(url)
    card = read_card(data, url)
    for field, have in (("classes", context.classes), ("domains", context.domains)):
        if tuple(card[field]) != have:
            raise UserError(
                f"checkpoint {url}: was trained for {field} {', '.join(card[field])}; "
                f"the manifest has {', '.join(have)}"
            )
    run = RunConfig.model_validate(card["run"])
    model = build_method(run.method, context.backbone, context.task(run.forget))
    try:
        model.load_state_dict(safetensors.torch.load(data), strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {url}: does not fit backbone {context.backbone.name}: {reason}"
        ) from error
    return model.to(context.device), run
