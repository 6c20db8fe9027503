"""Loads the frozen CLIP that everything starts from.

One option names it: ``demo``; an open_clip architecture with its weights
(``ViT-B-16:openai``, ``ViT-B-16:/weights.safetensors``, ``ViT-B-16:s3://bucket/weights.pt``); or a
folder or URL that holds ``open_clip_config.json`` and ``open_clip_model.safetensors``.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adu import storage
from adu.config import StrictModel
from adu.data import ImageTransform
from adu.demo import WEIGHTS_DIR
from adu.errors import UserError
from adu.tower import ViTTower, open_tower

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


class BackboneConfig(StrictModel):
    """The pre-trained model and the words that it is asked with."""

    name: str = Field(
        "demo", description="'demo', ARCH:WEIGHTS of open_clip, or an open_clip model folder or URL"
    )
    template: str = Field(
        "a photo of a {class}.", description="caption of a class, with {class} for its name"
    )


@dataclass
class Backbone:
    """A frozen CLIP-like model.

    Attributes:
        name: As the user wrote it.
        clip: The open_clip model, in evaluation mode, without gradients.
        tower: Its image tower, opened for prompts.
        tokenizer: Captions to token numbers.
        transform: How images are prepared for it.
    """

    name: str
    clip: Any
    tower: ViTTower
    tokenizer: Any
    transform: ImageTransform

    @torch.no_grad()
    def text_features(self, classes: Sequence[str], template: str) -> Tensor:
        """Unit-length text_CE of the classes' captions (underscores read as spaces)."""
        captions = [template.replace("{class}", name.replace("_", " ")) for name in classes]
        tokens_CT = self.tokenizer(captions).to(next(self.clip.parameters()).device)
        return F.normalize(self.clip.encode_text(tokens_CT).float(), dim=-1)


def load_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """Loads the model that ``config.name`` names, frozen, in fp32.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used.
    """
    if "{class}" not in config.template:
        raise UserError(f"backbone.template = '{config.template}': must contain {{class}}")
    with tempfile.TemporaryDirectory() as scratch:
        architecture, weights = _locate(config.name, Path(scratch))
        clip, transform = _create(config.name, architecture, weights)
        tokenizer = open_clip.get_tokenizer(architecture)
    clip.eval().requires_grad_(False).to(device)
    return Backbone(config.name, clip, open_tower(clip.visual, config.name), tokenizer, transform)


def _locate(name: str, scratch: Path) -> tuple[str, str | None]:
    """Finds what open_clip is to be asked for: an architecture and, with one, its weights."""
    if name == "demo":
        return f"local-dir:{WEIGHTS_DIR}", None
    architecture, _, weights = name.partition(":")
    if architecture in open_clip.list_models() and weights:
        return _with_right_activation(architecture, weights, scratch)
    if architecture in open_clip.list_models():
        raise UserError(
            f"backbone '{name}': name its weights too, as {name}:WEIGHTS ({_tags(name)})"
        )
    if storage.exists(storage.join(name, CONFIG_FILE)):
        return f"local-dir:{_fetch_folder(name, scratch)}", None
    raise UserError(
        f"backbone '{name}': is neither 'demo', nor ARCH:WEIGHTS with an open_clip architecture, "
        f"nor a folder or URL with {CONFIG_FILE} and {WEIGHTS_FILE}"
    )


def _with_right_activation(architecture: str, weights: str, scratch: Path) -> tuple[str, str]:
    tag = re.sub(r"[^a-z0-9]", "_", weights.lower())
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if tag in known:
        # OpenAI's weights were trained with QuickGELU; open_clip keeps that as its own
        # architecture and only warns when the plain one is asked for.
        quick = f"{architecture}-quickgelu"
        needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
        return (quick if needs_quick and quick in open_clip.list_models() else architecture), tag
    if storage.exists(weights):
        return architecture, str(_fetch_file(weights, scratch))
    raise UserError(
        f"backbone '{architecture}:{weights}': no such weights "
        f"(a file, a URL, or {_tags(architecture)})"
    )


def _tags(architecture: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return f"tags of {architecture}: {', '.join(tags)}" if tags else f"{architecture} has no tags"


def _fetch_folder(url: str, scratch: Path) -> Path:
    if "://" not in url:
        return Path(url).resolve()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        (scratch / file).write_bytes(storage.read_bytes(storage.join(url, file)))
    return scratch


def _fetch_file(url: str, scratch: Path) -> Path:
    if "://" not in url:
        return Path(url).resolve()
    target = scratch / url.rsplit("/", 1)[-1]
    target.write_bytes(storage.read_bytes(url))
    return target


def _create(name: str, architecture: str, weights: str | None) -> tuple[Any, ImageTransform]:
    # open_clip logs every step of the way to the root logger.
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        clip = open_clip.create_model(architecture, pretrained=weights, weights_only=True)
    except (RuntimeError, OSError, KeyError, ValueError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone '{name}': cannot be loaded: {reason}") from error
    finally:
        logging.disable(previous)
    return clip, _transform(open_clip.get_model_preprocess_cfg(clip))


def _transform(preprocess: dict[str, Any]) -> ImageTransform:
    size = preprocess["size"]
    return ImageTransform(
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=preprocess["interpolation"],
    )
