"""Loads open_clip models by the one name that a user gives; see `adu.models.backbone`.

Apart from there because open_clip takes seconds to import, and most who read a configuration load
no model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from adu.models.backbone import Backbone, BackboneConfig
from adu.models.preparation import image_transform
from adu.models.sources import (
    check_transformers,
    explaining,
    fetch_model,
    fetch_weights,
    find_source,
    quiet,
)
from adu.models.towers import open_tower
from adu.models.weights import check_finite, check_grid


def load_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """Loads the model that ``config.name`` names, frozen, in fp32.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used: weights that
            are missing, broken, of another shape or not finite are never made up for.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backbone = load_clip(config.name, Path(scratch))
    backbone.clip.eval().requires_grad_(False).to(device)
    return backbone


def load_clip(name: str, scratch: Path) -> Backbone:
    """Loads a model, as open_clip gives it.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
        scratch: Folder for files that are fetched from elsewhere.

    Raises:
        UserError: If the name, folder, file or URL holds no model that can be used.
    """
    source = find_source(name)
    check_transformers(name, source)
    model = fetch_model(source, scratch)
    file = fetch_weights(source, model, scratch)
    with explaining(f"backbone '{name}': cannot be loaded"), quiet():
        clip = open_clip.create_model(
            model,
            pretrained=source.tag or (file if source.architecture else None),
            force_preprocess_cfg=dict(source.preprocess or {}),
            require_pretrained=True,
            weights_only=True,
        )
    with explaining(f"backbone '{name}': preprocess_cfg cannot be used"):
        transform = image_transform(name, clip)
    check_finite(name, clip)
    if file is not None:
        check_grid(name, clip, file)
    tower = open_tower(clip.visual, name)
    with explaining(f"backbone '{name}': its tokenizer cannot be loaded"), quiet():
        tokenizer = open_clip.get_tokenizer(model)
    return Backbone(name, clip, tower, tokenizer, transform)


def forward_flops(name: str) -> int:
    """Floating-point operations of a forward pass of one image through the image tower.

    Reads no weights: the model is built without memory.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
    """
    clip = _without_memory(name)
    size = image_transform(name, clip).image_size
    return _flops(clip, lambda: clip.encode_image(torch.empty(1, 3, size, size)))


def caption_flops(name: str) -> int:
    """The same of one caption through the text tower."""
    clip = _without_memory(name)
    return _flops(clip, lambda: clip.encode_text(torch.zeros(1, clip.context_length).long()))


def image_side(name: str) -> int:
    """Height and width in pixels of the images that a model takes; reads no weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.

    Raises:
        UserError: If there is no such model, or it cannot be used here.
    """
    return image_transform(name, _without_memory(name)).image_size


def _flops(clip: Any, call: Callable[[], object]) -> int:
    # The counter cannot look through `no_grad` into every timm model.
    clip.requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _without_memory(name: str) -> Any:
    source = find_source(name)
    check_transformers(name, source)
    with tempfile.TemporaryDirectory() as scratch:
        model = fetch_model(source, Path(scratch), weights=False)
        with explaining(f"backbone '{name}': cannot be built"), quiet(), torch.device("meta"):
            clip = open_clip.create_model(
                model, load_weights=False, pretrained_text=False, device="meta"
            )
    open_tower(clip.visual, name)
    return clip
