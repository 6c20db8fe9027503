"""What the one name that a user gives for a model stands for, and how it gets to this machine.

No model is built here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf

from adu import storage
from adu.demo import WEIGHTS_DIR
from adu.errors import UserError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# How open_clip is asked for a folder, and for a repository of the Hugging Face hub.
LOCAL_FOLDER = "local-dir:"
HUB = "hf-hub:"
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
        folder: Path or URL of an open_clip model folder.
        hub: ``hf-hub:`` and the name of a repository of the Hugging Face hub.
        architecture: open_clip's name for it; None where one of the two says what it is.
        tag: Weights that open_clip knows by name.
        file: Path or URL of other weights.
        preprocess: How images are prepared for those.
    """

    folder: str | None = None
    hub: str | None = None
    architecture: str | None = None
    tag: str | None = None
    file: str | None = None
    preprocess: Mapping[str, Any] | None = None


def find_source(name: str) -> Source:
    """Finds what a name stands for: a folder, or an architecture with its weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.

    Raises:
        UserError: If it stands for nothing, or for a folder without weights.
    """
    if name == "demo":
        return Source(folder=str(WEIGHTS_DIR))
    if name.startswith(HUB):
        return Source(hub=name)
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
            f"architecture, nor {HUB}REPOSITORY, nor a folder or URL with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}"
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


def needs_transformers(name: str) -> bool:
    """Whether a model's text comes from Hugging Face's transformers; reads no weights.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
    """
    return _uses_hugging_face(_text_config(find_source(name)))


def check_transformers(name: str, source: Source) -> None:
    """Checks that a model's tokenizer can be loaded here.

    Raises:
        UserError: If it needs a package that is not installed.
    """
    if _uses_hugging_face(_text_config(source)) and not _has_transformers():
        raise UserError(
            f"backbone '{name}': its tokenizer needs the package transformers, which is not "
            "installed (pip install 'adu-search[hub]')"
        )


def fetch_model(source: Source, scratch: Path, weights: bool = True) -> str:
    """What open_clip is asked for; a folder elsewhere is fetched before.

    Args:
        source: Where the model comes from.
        scratch: Folder for what is fetched.
        weights: Whether all of it is wanted, or its configuration alone.
    """
    if source.folder is None:
        named = source.hub or source.architecture
        assert named is not None
        return named
    if "://" not in source.folder:
        return f"{LOCAL_FOLDER}{Path(source.folder).resolve()}"
    files = [CONFIG_FILE, WEIGHTS_FILE] if weights else [CONFIG_FILE]
    if weights and _uses_hugging_face(_text_config(source)):
        files += [f for f in TOKENIZER_FILES if storage.exists(storage.join(source.folder, f))]
    for file in files:
        (scratch / file).write_bytes(storage.read_bytes(storage.join(source.folder, file)))
    return f"{LOCAL_FOLDER}{scratch}"


def fetch_weights(source: Source, model: str, scratch: Path) -> str | None:
    """The file of a model's weights, fetched if it is elsewhere; None for those that a tag names.

    Args:
        source: Where the model comes from.
        model: What `fetch_model` gave for it.
        scratch: Folder for what is fetched.
    """
    if source.folder is not None:
        return str(Path(model.removeprefix(LOCAL_FOLDER)) / WEIGHTS_FILE)
    if source.hub is not None:
        with explaining(f"backbone '{source.hub}': cannot be fetched"), quiet():
            return download_pretrained_from_hf(source.hub.removeprefix(HUB))
    if source.file is None or "://" not in source.file:
        return None if source.file is None else str(Path(source.file).resolve())
    target = scratch / source.file.rsplit("/", 1)[-1]
    target.write_bytes(storage.read_bytes(source.file))
    return str(target)


@contextlib.contextmanager
def explaining(what: str) -> Iterator[None]:
    """Makes one line of whatever open_clip, timm and transformers raise over a user's files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps open_clip, which logs every step of the way to the root logger, from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


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
        named = source.hub or source.architecture
        with explaining(f"backbone '{named}': {CONFIG_FILE} cannot be had"), quiet():
            return open_clip.get_model_config(named)["text_cfg"]
    url = storage.join(source.folder, CONFIG_FILE)
    with explaining(f"backbone '{source.folder}': {CONFIG_FILE} is broken"):
        text_config = json.loads(storage.read_bytes(url))["model_cfg"]["text_cfg"]
        if not isinstance(text_config, dict):
            raise ValueError(f"text_cfg = {text_config!r}")
        return text_config


def _uses_hugging_face(text_config: Mapping[str, Any]) -> bool:
    return bool(text_config.get("hf_tokenizer_name") or text_config.get("hf_model_name"))


def _has_transformers() -> bool:
    return find_spec("transformers") is not None
