"""The smallest model and data that the real code runs on: built in milliseconds, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from adu.context import Context, ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.methods import build_method
from adu.models.backbone import BackboneConfig
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from pipeline.ingest import IngestConfig, ingest

CLASSES = ("cup", "fish", "star")
DOMAINS = ("clipart", "photo", "sketch")
N_BLOCKS = 4

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": N_BLOCKS,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}


def tiny_backbone(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes an open_clip model folder with random weights; changes are to `MODEL`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL | changes, "preprocess_cfg": {}}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    return folder


def tiny_images(folder: Path, per_cell: int = 8, seed: int = 0) -> Path:
    """Writes noisy images whose colour tells the class and whose brightness the domain."""
    rng = np.random.default_rng(seed)
    for d, domain in enumerate(DOMAINS):
        for c, name in enumerate(CLASSES):
            cell = folder / domain / name
            cell.mkdir(parents=True, exist_ok=True)
            for i in range(per_cell):
                pixels = rng.integers(0, 80, (40, 36, 3)) + 50 * d
                pixels[..., c] += 70
                Image.fromarray(pixels.astype(np.uint8)).save(cell / f"{i}.png")
    return folder


def tiny_manifest(folder: Path, per_cell: int = 8) -> Path:
    """Writes images and the manifest of them; returns the manifest's folder."""
    images = tiny_images(folder / "images", per_cell)
    manifest = folder / "manifest"
    ingest(IngestConfig(source=str(images), out=str(manifest), name="tiny"))
    return manifest


def tiny_context(folder: Path, shots: int = 2, val_shots: int | str = 1, **data: object) -> Context:
    """Loads a whole context from fresh tiny files, on the CPU."""
    config = ContextConfig(
        backbone=BackboneConfig(name=str(tiny_backbone(folder / "model"))),
        data=DataConfig(
            manifest=str(tiny_manifest(folder)), shots=shots, val_shots=val_shots, **data
        ),
    )
    return load_context(config, torch.device("cpu"))


def tiny_teacher(context: Context, forget: tuple[str, ...] = ("sketch",)) -> str:
    """Writes a checkpoint of a model that is far from the untouched one; returns its path."""
    method = {"name": "baseline", "n_ctx": 2, "init_std": 1.0}
    run = RunConfig.model_validate({"forget": forget, "method": method})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_method(run.method, context.backbone, context.task(forget))
    file = Path(context.config.data.manifest).parent / f"teacher-{'-'.join(forget)}.safetensors"
    file.write_bytes(checkpoint_bytes(model, run, context))
    return str(file)
