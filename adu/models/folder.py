"""Writes a model as a folder that open_clip loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import open_clip
from safetensors.torch import save_file
from torch import Tensor

from adu.models.openclip import load_clip
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE, fetch_model, find_source


def save_folder(
    name: str, folder: Path, changed: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Writes a model as a folder that `load_clip` reads, with all that belongs to it.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.
        folder: An empty folder.
        changed: Weights that take the place of the model's own, by name.

    Raises:
        UserError: If there is no such model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backbone = load_clip(name, Path(scratch))
        model = fetch_model(find_source(name), Path(scratch), weights=False)
        model_config = open_clip.get_model_config(model)
    config = {
        "model_cfg": model_config,
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(backbone.clip),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))
    weights = {**backbone.clip.state_dict(), **changed}
    save_file({key: weights[key].contiguous() for key in weights}, folder / WEIGHTS_FILE)
    if hasattr(backbone.tokenizer, "save_pretrained"):
        backbone.tokenizer.save_pretrained(folder)
