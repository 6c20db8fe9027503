"""Finds and loads open_clip models by the one name that a user gives; see `adu.models.backbone`.

Apart from there because open_clip takes seconds to import, and most who read a configuration load
no model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adu import storage
from adu.data.preprocess import ImageTransform
from adu.demo import WEIGHTS_DIR
from adu.errors import UserError
from adu.models.backbone import Backbone, BackboneConfig
from adu.models.tower import EvaTower, TimmTower, Tower, ViTTower

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# How open_clip is asked for a folder.
LOCAL_FOLDER = "local-dir:"
# What Hugging Face tokenizers are made of; which of these there are depends on their kind.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "config.json"),
)

# What a tag says of how images are prepared.
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        folder: Path or URL of an open_clip model folder; None for an architecture.
        architecture: open_clip's name for it; None for a folder.
        tag: Weights that open_clip knows by name.
        file: Path or URL of other weights.
        preprocess: How images are prepared for those.
    """

    folder: str | None = None
    architecture: str | None = None
    tag: str | None = None
    file: str | None = None
    preprocess: Mapping[str, Any] | None = None


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
    _check_transformers(name, source)
    model = _fetch_model(source, scratch)
    weights = None if source.file is None else str(_fetch_file(source.file, scratch))
    with _explaining(f"backbone '{name}': cannot be loaded"), _quiet():
        clip = open_clip.create_model(
            model,
            pretrained=weights or source.tag,
            force_preprocess_cfg=dict(source.preprocess or {}),
            require_pretrained=True,
            weights_only=True,
        )
    transform = _transform(name, clip)
    _check_finite(name, clip)
    if source.folder is not None:
        weights = str(Path(model.removeprefix(LOCAL_FOLDER)) / WEIGHTS_FILE)
    if weights is not None:
        _check_grid(name, clip, weights)
    tower = open_tower(clip.visual, name)
    with _explaining(f"backbone '{name}': its tokenizer cannot be loaded"), _quiet():
        tokenizer = open_clip.get_tokenizer(model)
    return Backbone(name, clip, tower, tokenizer, transform)


def save_folder(name: str, folder: Path) -> None:
    """Writes a model as a folder that `load_clip` reads, with all that belongs to it.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
        folder: An empty folder.

    Raises:
        UserError: If there is no such model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backbone = load_clip(name, Path(scratch))
        model = _fetch_model(find_source(name), Path(scratch), weights=False)
        model_config = open_clip.get_model_config(model)
    config = {
        "model_cfg": model_config,
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(backbone.clip),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))
    save_file(backbone.clip.state_dict(), folder / WEIGHTS_FILE)
    if hasattr(backbone.tokenizer, "save_pretrained"):
        backbone.tokenizer.save_pretrained(folder)


def needs_transformers(name: str) -> bool:
    """Whether a model's text comes from Hugging Face's transformers; reads no weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
    """
    return _uses_hugging_face(_text_config(find_source(name)))


def forward_flops(name: str) -> int:
    """Floating-point operations of a forward pass of one image through the image tower.

    Reads no weights: the model is built without memory.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
    """
    clip = _without_memory(name)
    # The counter cannot look through `no_grad` into every timm model.
    clip.requires_grad_(False)
    size = _transform(name, clip).image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        clip.encode_image(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def image_side(name: str) -> int:
    """Height and width in pixels of the images that a model takes; reads no weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.

    Raises:
        UserError: If there is no such model, or it cannot be used here.
    """
    return _transform(name, _without_memory(name)).image_size


def _without_memory(name: str) -> Any:
    source = find_source(name)
    _check_transformers(name, source)
    with tempfile.TemporaryDirectory() as scratch:
        model = _fetch_model(source, Path(scratch), weights=False)
        with _explaining(f"backbone '{name}': cannot be built"), _quiet(), torch.device("meta"):
            clip = open_clip.create_model(
                model, load_weights=False, pretrained_text=False, device="meta"
            )
    open_tower(clip.visual, name)
    return clip


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


def find_source(name: str) -> Source:
    """Finds what a name stands for: a folder, or an architecture with its weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.

    Raises:
        UserError: If it stands for nothing, or for a folder without weights.
    """
    if name == "demo":
        return Source(folder=str(WEIGHTS_DIR))
    architecture, _, weights = name.partition(":")
    if architecture in open_clip.list_models() and weights:
        return find_weights(architecture, _expanded(weights))
    if architecture in open_clip.list_models():
        raise UserError(
            f"backbone '{name}': name its weights too, as {name}:WEIGHTS ({_tags(name)})"
        )
    folder = _expanded(name)
    if not storage.exists(storage.join(folder, CONFIG_FILE)):
        raise UserError(
            f"backbone '{name}': is neither 'demo', nor ARCH:WEIGHTS with an open_clip "
            f"architecture, nor a folder or URL with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not storage.exists(storage.join(folder, WEIGHTS_FILE)):
        raise UserError(
            f"backbone '{name}': has {CONFIG_FILE} but no {WEIGHTS_FILE} "
            "(other weights are named as ARCH:FILE)"
        )
    return Source(folder=folder)


def find_weights(architecture: str, weights: str) -> Source:
    """The architecture with the activation that weights were trained with, and the weights.

    Nothing in a file of weights says how images are to be prepared for it, or with which
    activation it was trained. A tag in its name does; without one it is what all the
    architecture's tags agree on, and the activation the architecture's own.

    Args:
        architecture: Its name without regard to the activation.
        weights: A tag, a file or a URL.

    Raises:
        UserError: If there are no such weights, or nothing says how images are prepared.
    """
    known = open_clip.list_pretrained_tags_by_model(architecture)
    tag = _plain(weights)
    if tag in known:
        return Source(architecture=_with_activation(architecture, tag), tag=tag)
    if not storage.exists(weights):
        raise UserError(
            f"backbone '{architecture}:{weights}': no such weights "
            f"(a file, a URL, or {_tags(architecture)})"
        )
    file_name = _plain(weights.rsplit("/", 1)[-1])
    named = max((tag for tag in known if tag in file_name), key=len, default=None)
    ways = [_preprocess_of(architecture, tag) for tag in ([named] if named else known)]
    if any(way != ways[0] for way in ways):
        raise UserError(
            f"backbone '{architecture}:{weights}': the weights of {architecture} differ in how "
            f"images are prepared: put the tag into the file's name ({_tags(architecture)}), or "
            f"give a folder whose {CONFIG_FILE} has a preprocess_cfg"
        )
    return Source(
        architecture=_with_activation(architecture, named) if named else architecture,
        file=weights,
        preprocess=ways[0] if ways else None,
    )


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", text.lower())


def _preprocess_of(architecture: str, tag: str) -> dict[str, Any]:
    known = open_clip.get_pretrained_cfg(architecture, tag)
    return {key: known[key] for key in PREPROCESS_KEYS if key in known}


def _with_activation(architecture: str, tag: str) -> str:
    """The architecture as it was trained: open_clip keeps QuickGELU as one of its own."""
    quick = f"{architecture}-quickgelu"
    needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    return quick if needs_quick and quick in open_clip.list_models() else architecture


def _tags(architecture: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return f"tags of {architecture}: {', '.join(tags)}" if tags else f"{architecture} has no tags"


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _text_config(source: Source) -> Mapping[str, Any]:
    """How a model's text side is built."""
    if source.folder is None:
        return open_clip.get_model_config(source.architecture)["text_cfg"]
    url = storage.join(source.folder, CONFIG_FILE)
    with _explaining(f"backbone '{source.folder}': {CONFIG_FILE} is broken"):
        return json.loads(storage.read_bytes(url))["model_cfg"]["text_cfg"]


def _uses_hugging_face(text_config: Mapping[str, Any]) -> bool:
    return bool(text_config.get("hf_tokenizer_name") or text_config.get("hf_model_name"))


def _check_transformers(name: str, source: Source) -> None:
    if _uses_hugging_face(_text_config(source)) and not _has_transformers():
        raise UserError(
            f"backbone '{name}': its tokenizer needs the package transformers, which is not "
            "installed (pip install 'adu-search[hub]')"
        )


def _has_transformers() -> bool:
    return find_spec("transformers") is not None


def _fetch_model(source: Source, scratch: Path, weights: bool = True) -> str:
    """What open_clip is asked for; a folder elsewhere is fetched before."""
    if source.architecture is not None:
        return source.architecture
    assert source.folder is not None
    if "://" not in source.folder:
        return f"{LOCAL_FOLDER}{Path(source.folder).resolve()}"
    files = [CONFIG_FILE, WEIGHTS_FILE] if weights else [CONFIG_FILE]
    if weights and _uses_hugging_face(_text_config(source)):
        files += [f for f in TOKENIZER_FILES if storage.exists(storage.join(source.folder, f))]
    for file in files:
        (scratch / file).write_bytes(storage.read_bytes(storage.join(source.folder, file)))
    return f"{LOCAL_FOLDER}{scratch}"


def _fetch_file(url: str, scratch: Path) -> Path:
    if "://" not in url:
        return Path(url).resolve()
    target = scratch / url.rsplit("/", 1)[-1]
    target.write_bytes(storage.read_bytes(url))
    return target


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Makes one line of whatever open_clip, timm and transformers raise over a user's files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error


def _check_grid(name: str, clip: nn.Module, file: str) -> None:
    """Checks that positional embeddings are those of the file.

    open_clip resizes them to the model's, and says so to nobody: that is another model, which
    without training is a worse one.
    """
    stored = _stored_shapes(file)
    for key, values in clip.state_dict().items():
        is_grid = key.endswith("positional_embedding")
        if is_grid and stored.get(key, values.shape) != values.shape:
            found, wanted = (" x ".join(map(str, s)) for s in (stored[key], values.shape))
            raise UserError(
                f"backbone '{name}': its weight {key} is {found}, the architecture's {wanted}: "
                "they are of a model for another image size or caption length"
            )


def _stored_shapes(file: str) -> dict[str, torch.Size]:
    """The shapes of a file's weights; none of them is read. Big Vision's files have other names."""
    if file.endswith((".npz", ".npy")):
        return {}
    if file.endswith(".safetensors"):
        with safe_open(file, "pt") as weights:
            return {key: torch.Size(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    saved = torch.load(file, map_location="meta", weights_only=True)
    weights = saved.get("state_dict", saved)
    return {
        key.removeprefix("module."): value.shape
        for key, value in weights.items()
        if isinstance(value, torch.Tensor)
    }


def _check_finite(name: str, clip: nn.Module) -> None:
    for key, weight in clip.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"backbone '{name}': its weight {key} holds NaN or infinity")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip, which logs every step of the way to the root logger, from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _transform(name: str, clip: Any) -> ImageTransform:
    """How images are prepared for a model, out of open_clip's own description.

    Raises:
        UserError: If that asks for what is not done here.
    """
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    what = f"backbone '{name}': preprocess_cfg"
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{what}: size = {height} x {width} (allowed: squares)")
    # timm's towers have a size of their own, and know nothing of the folder's.
    taken = getattr(
        getattr(getattr(clip.visual, "trunk", None), "patch_embed", None), "img_size", None
    )
    if taken is not None and tuple(taken) != (height, width):
        raise UserError(
            f"backbone '{name}': image_size = {height}: its image tower takes "
            f"{taken[0]} x {taken[1]}"
        )
    # open_clip takes 'random', which is for training, as bicubic.
    asked = preprocess["interpolation"]
    interpolation: Any = "bicubic" if asked == "random" else asked
    for key, value, allowed in (
        ("interpolation", interpolation, ("bicubic", "bilinear")),
        ("resize_mode", preprocess["resize_mode"], ("shortest", "longest", "squash")),
    ):
        if value not in allowed:
            raise UserError(f"{what}: {key} = {value!r} (allowed: {', '.join(allowed)})")
    return ImageTransform(
        image_size=height,
        mean=_of_channels(preprocess["mean"], f"{what}: mean"),
        std=_of_channels(preprocess["std"], f"{what}: std"),
        interpolation=interpolation,
        resize_mode=preprocess["resize_mode"],
        fill=preprocess["fill_color"],
    )


def _of_channels(value: Any, what: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise UserError(f"{what} = {value!r} (allowed: a number, or one for each of 3 channels)")
    return values
