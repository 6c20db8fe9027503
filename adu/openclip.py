"""Finds and loads open_clip models by the one name that a user gives; see `adu.backbone`.

Apart from there because open_clip takes seconds to import, and most who read a configuration load
no model.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import VisionTransformer
from torch import nn

from adu import storage
from adu.data import ImageTransform
from adu.demo import WEIGHTS_DIR
from adu.errors import UserError
from adu.tower import ViTTower

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True)
class LoadedClip:
    """A model as open_clip gives it.

    Attributes:
        clip: The model.
        tower: Its image tower, opened for prompts.
        tokenizer: Captions to token numbers.
        transform: How images are prepared for it.
    """

    clip: Any
    tower: ViTTower
    tokenizer: Any
    transform: ImageTransform


def load_clip(name: str, scratch: Path) -> LoadedClip:
    """Loads a model.

    Args:
        name: As in `adu.backbone.BackboneConfig`.
        scratch: Folder for files that are fetched from elsewhere.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used.
    """
    architecture, weights = _locate(name, scratch)
    clip, transform = _create(name, architecture, weights)
    tower = open_tower(clip.visual, name)
    return LoadedClip(clip, tower, open_clip.get_tokenizer(architecture), transform)


def open_tower(visual: nn.Module, name: str) -> ViTTower:
    """Opens an image tower for prompts.

    Raises:
        UserError: If the tower is of a kind that cannot take tokens.
    """
    if isinstance(visual, VisionTransformer):
        return ViTTower(visual)
    raise UserError(
        f"backbone {name}: its image tower is a {type(visual).__name__}, which takes no prompts "
        "(allowed: models whose image tower is open_clip's VisionTransformer, such as "
        "ViT-B-16-quickgelu, ViT-B-32, ViT-L-14, ViT-H-14)"
    )


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
