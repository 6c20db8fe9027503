"""What the library is for everybody: open images, unlearn domains, evaluate, keep, use.

Images, backbones and models are those of the rooms below; what is here only puts them together.

Example, on the demo:
    >>> import adu, pathlib, tempfile
    >>> backbone = adu.load_backbone("demo", device="cpu")
    >>> backbone.text_features(("car", "tree"), "a photo of a {class}.").shape
    torch.Size([2, 64])
    >>> images = adu.open_images("demo")
    >>> images.n_images, images.domains
    (1280, ('clipart', 'painting', 'photo', 'sketch'))
    >>> model = adu.unlearn(images, "sketch", backbone, epochs=1, shots=2, val_shots=1)
    >>> [report.epoch for report in model.history]
    [1]
    >>> adu.evaluate(model, images) == model.scores
    True
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "model.safetensors")
    ...     adu.save(model, file)
    ...     adu.load(file, device="cpu").classes == model.classes
    True
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from adu.config import StrictModel, parse_config
from adu.context import DEMO, Context, ContextConfig, open_context
from adu.data import opening
from adu.data.decoded import select_images
from adu.data.manifest import Manifest
from adu.demo.manifest import demo_manifest
from adu.errors import UserError
from adu.evaluation.evaluate import evaluate_test
from adu.evaluation.metrics import Scores
from adu.models import openclip
from adu.models.backbone import DEFAULT_TEMPLATE, Backbone, BackboneConfig
from adu.models.precision import autocast
from adu.serving.classifier import Classifier
from adu.serving.export import export_onnx, export_open_clip
from adu.serving.model import UnlearnedModel, load_model, save_model
from adu.training.checkpoint import check_trained_for, make_card
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport, Trainer

__all__ = [
    "Classifier",
    "UnlearnedModel",
    "UserError",
    "evaluate",
    "export_onnx",
    "export_open_clip",
    "load",
    "load_backbone",
    "open_images",
    "save",
    "unlearn",
]

Path = str | os.PathLike[str]


def load_backbone(name: str = DEMO, device: str | torch.device | None = None) -> Backbone:
    """Loads a frozen CLIP, for several runs.

    Args:
        name: ``demo``, ``ARCHITECTURE:TAG`` or ``hf-hub:REPOSITORY`` of open_clip,
            ``ARCHITECTURE:FILE``, or an open_clip model folder or URL.
        device: Where to compute; None for a GPU if there is one.

    Raises:
        UserError: If there is no such model, or it cannot be used.
    """
    return openclip.load_backbone(BackboneConfig(name=name), _device(device))


def open_images(
    source: Any, out: Path | None = None, test_share: float = 0.5, seed: int = 0
) -> Manifest:
    """Opens images, of which each has a class and a domain.

    Every image is read once. `pipeline/ingest.py` is for data sets that are large or not clean.

    Args:
        source: One of

            - ``"demo"``, synthetic pictures that are drawn on first use;
            - a manifest, its folder or its URL;
            - a folder or URL with images as ``domain/class/file``;
            - for each domain a data set as torchvision has them:
              ``{"photo": ImageFolder(...), "sketch": ImageFolder(...)}``;
            - a Hugging Face data set, or one for each split, with the columns ``image``, ``label``
              (or ``class``) and ``domain``;
            - a DataFrame with the columns ``path``, ``class`` and ``domain``, perhaps ``split``.
        out: Folder or URL to write the manifest to, for other processes and the commands; None to
            keep it in this process' memory.
        test_share: Share of each domain and class that is set aside for testing, where nothing
            says which images are.
        seed: Which images those are.

    Raises:
        UserError: If it is none of these, or an image in it cannot be used.
    """
    if isinstance(source, str) and source == DEMO:
        return demo_manifest()
    return opening.open_images(source, None if out is None else os.fspath(out), test_share, seed)


def unlearn(
    images: Any,
    forget: str | Sequence[str],
    backbone: str | Backbone = DEMO,
    *,
    method: str | dict[str, Any] | StrictModel = "adu",
    shots: int = 8,
    val_shots: int = 4,
    template: str = DEFAULT_TEMPLATE,
    device: str | torch.device | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    **train: Any,
) -> UnlearnedModel:
    """Trains a model that has unlearned domains, and tests it.

    Args:
        images: As in `open_images`.
        forget: The domain to forget, or several.
        backbone: As in `load_backbone`, or one that is loaded already.
        method: A method's name, or its options with ``name`` among them; see README.md.
        shots: Training images of each domain and class.
        val_shots: Validation images of each domain and class.
        template: Caption of a class, with ``{class}`` for its name.
        device: Where to compute; None for a GPU if there is one, or where the backbone is.
        on_epoch: Called after each epoch.
        **train: Options of `adu.training.config.TrainConfig`: ``epochs``, ``lr``, ``seed``.

    Returns:
        The model, with its ``scores`` on the test images and the ``history`` of its epochs.

    Raises:
        UserError: If something that is asked for does not exist or does not fit.
        TrainingDivergedError: If a loss is no longer finite.
    """
    domains = (forget,) if isinstance(forget, str) else tuple(forget)
    values = {"forget": domains, "method": method, "train": train}
    run = parse_config(RunConfig, values, "adu.unlearn")
    data = {"shots": shots, "val_shots": val_shots}
    context = _context(open_images(images), backbone, template, data, device)
    trainer = Trainer(run, context)
    history = []
    for report in trainer.epochs():
        history.append(report)
        if on_epoch is not None:
            on_epoch(report)
    scores = trainer.test().scores
    return UnlearnedModel(trainer.model, make_card(run, context), scores, history)


def evaluate(model: UnlearnedModel, images: Any) -> Scores:
    """Scores a model on the test images of a data set with its classes and domains.

    Args:
        model: The model.
        images: As in `open_images`.

    Raises:
        UserError: If the data set has other classes or domains.
    """
    manifest, card = open_images(images), model.card
    check_trained_for(card, "model", manifest.classes, manifest.domains)
    context = _context(manifest, model.method.backbone, card.backbone.template, {}, model.device)
    with autocast(card.run.train.precision, model.device):
        return evaluate_test(model, context, card.run.forget).scores


def save(model: UnlearnedModel, file: Path) -> None:
    """Writes a checkpoint: what was trained, and the name and fingerprint of its backbone.

    Args:
        model: The model.
        file: File or URL.

    Raises:
        UserError: If it cannot be written.
    """
    save_model(model, os.fspath(file))


def load(
    file: Path, backbone: str | None = None, device: str | torch.device | None = None
) -> UnlearnedModel:
    """Loads a checkpoint with its backbone.

    Args:
        file: File or URL.
        backbone: Where the backbone is, if not where the checkpoint says.
        device: Where to compute; None for a GPU if there is one.

    Raises:
        UserError: If the checkpoint or its backbone cannot be read, or is another than the one
            that the checkpoint was trained on.
    """
    return load_model(os.fspath(file), backbone, _device(device))


def _context(
    manifest: Manifest,
    backbone: str | Backbone,
    template: str,
    data: dict[str, Any],
    device: str | torch.device | None,
) -> Context:
    """Model and images together."""
    named = backbone.name if isinstance(backbone, Backbone) else backbone
    values = {
        "backbone": {"name": named, "template": template},
        "data": {"manifest": manifest.url, "allow_uri": manifest.allow_uri, **data},
    }
    config = parse_config(ContextConfig, values, "adu.unlearn")
    selected = select_images(manifest, config.data)
    if isinstance(backbone, str):
        return open_context(config, selected, _device(device))
    where = next(backbone.clip.parameters()).device if device is None else torch.device(device)
    backbone.clip.to(where)
    return open_context(config, selected, where, backbone=backbone)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
