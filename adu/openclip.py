"""Finds and loads open_clip models by the one name that a user gives; see `adu.backbone`.

Apart from there because open_clip takes seconds to import, and most who read a configuration load
no model.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adu import storage
from adu.backbone import Backbone, BackboneConfig
from adu.data import ImageTransform
from adu.demo import WEIGHTS_DIR
from adu.errors import UserError
from adu.tower import EvaTower, TimmTower, Tower, ViTTower

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def load_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """Loads the model that ``config.name`` names, frozen, in fp32.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used.
    """
    if "{class}" not in config.template:
        raise UserError(f"backbone.template = '{config.template}': must contain {{class}}")
    with tempfile.TemporaryDirectory() as scratch:
        backbone = load_clip(config.name, Path(scratch))
    backbone.clip.eval().requires_grad_(False).to(device)
    return backbone


def load_clip(name: str, scratch: Path) -> Backbone:
    """Loads a model, as open_clip gives it.

    Args:
        name: As in `adu.backbone.BackboneConfig`.
        scratch: Folder for files that are fetched from elsewhere.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used.
    """
    architecture, weights = _locate(name, scratch)
    clip, transform = _create(name, architecture, weights)
    tower = open_tower(clip.visual, name)
    return Backbone(name, clip, tower, open_clip.get_tokenizer(architecture), transform)


def forward_flops(name: str) -> int:
    """Floating-point operations of a forward pass of one image through the image tower.

    Reads no weights: the model is built without memory.

    Args:
        name: As in `adu.backbone.BackboneConfig`.
    """
    clip = _without_memory(name)
    height, width = _input_size(clip)
    # The counter cannot look through `no_grad` into every timm model.
    clip.requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        clip.encode_image(torch.empty(1, 3, height, width))
    return counter.get_total_flops()


def image_side(name: str) -> int:
    """Shorter side in pixels of the images that a model takes; reads no weights.

    Args:
        name: As in `adu.backbone.BackboneConfig`.
    """
    return min(_input_size(_without_memory(name)))


def _without_memory(name: str) -> Any:
    with tempfile.TemporaryDirectory() as scratch, torch.device("meta"), _quiet():
        architecture, _ = _locate(name, Path(scratch))
        return open_clip.create_model(architecture, load_weights=False, device="meta")


def _input_size(clip: Any) -> tuple[int, int]:
    size = open_clip.get_model_preprocess_cfg(clip)["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def open_tower(visual: nn.Module, name: str) -> Tower:
    """Opens an image tower for prompts.

    Raises:
        UserError: If the tower is of a kind that cannot take tokens.
    """
    if isinstance(visual, VisionTransformer):
        return ViTTower(visual)
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    # Exactly these: what inherits from them may well do something else between its blocks.
    if type(trunk) is TimmVisionTransformer:
        return TimmTower(visual)
    if type(trunk) is Eva:
        return EvaTower(visual)
    raise UserError(
        f"backbone {name}: its image tower is a {type(trunk).__name__}, which takes no prompts "
        f"(allowed: {', '.join(promptable_architectures())})"
    )


def promptable_architectures() -> list[str]:
    """The names of open_clip's models whose image tower takes prompts."""
    return [name for name in open_clip.list_models() if _takes_prompts(name)]


def _takes_prompts(architecture: str) -> bool:
    vision = open_clip.get_model_config(architecture)["vision_cfg"]
    timm_name = vision.get("timm_model_name")
    if timm_name is None:
        return isinstance(vision.get("layers", 12), int)
    return timm_name.startswith(("vit_", "eva"))


def _locate(name: str, scratch: Path) -> tuple[str, str | None]:
    """Finds what open_clip is to be asked for: an architecture and, with one, its weights."""
    if name == "demo":
        return f"local-dir:{WEIGHTS_DIR}", None
    architecture, _, weights = name.partition(":")
    if architecture in open_clip.list_models() and weights:
        return find_architecture(architecture, weights, scratch)
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


def find_architecture(architecture: str, weights: str, scratch: Path) -> tuple[str, str]:
    """The architecture with the activation that weights were trained with, and the weights.

    Args:
        architecture: Its name without regard to the activation.
        weights: A tag, a file or a URL.
        scratch: Folder for a file that is fetched from elsewhere.

    Raises:
        UserError: If there are no such weights.
    """
    tag = re.sub(r"[^a-z0-9]", "_", weights.lower())
    known = open_clip.list_pretrained_tags_by_model(architecture)
    # OpenAI's weights, and some others, were trained with QuickGELU; open_clip keeps that as an
    # architecture of its own and only warns when the plain one is asked for.
    quick = f"{architecture}-quickgelu"
    quick = quick if quick in open_clip.list_models() else architecture
    if tag in known:
        needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
        return (quick if needs_quick else architecture), tag
    if storage.exists(weights):
        # Nothing in a file says so but its name.
        is_openai = "openai" in weights.rsplit("/", 1)[-1].lower()
        return (quick if is_openai else architecture), str(_fetch_file(weights, scratch))
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
    try:
        with _quiet():
            clip = open_clip.create_model(architecture, pretrained=weights, weights_only=True)
    except (RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone '{name}': cannot be loaded: {reason}") from error
    return clip, _transform(open_clip.get_model_preprocess_cfg(clip))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip, which logs every step of the way to the root logger, from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _transform(preprocess: dict[str, Any]) -> ImageTransform:
    size = preprocess["size"]
    return ImageTransform(
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=preprocess["interpolation"],
    )
