"""A model that is questioned, and the images that all models are questioned with.

Tensor names carry their shape: N images, B images of a batch, C classes, E feature width, S the
model's height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from adu.config import StrictModel
from adu.context import Context
from adu.data.decoded import ImageSet
from adu.data.forget import forget_mask
from adu.data.manifest import Manifest
from adu.data.preprocess import normalised
from adu.evaluation.evaluate import EVAL_BATCH_SIZE
from adu.methods import Method, Task, build_method
from adu.models.backbone import Backbone
from adu.models.precision import Precision, autocast
from adu.training.config import RunConfig

# Changes pixels_BCSS, float32 from 0 to 255.
PixelChange = Callable[[Tensor], Tensor]


class MaterialConfig(StrictModel):
    """How many images models are questioned with, and in which precision."""

    test_per_cell: int = Field(
        20, ge=1, description="test images of each domain and class, where there are as many"
    )
    fresh_per_cell: int = Field(
        16, ge=0, description="training images of each that the model was not trained on"
    )
    precision: Precision = Field(
        "fp32", description="in which models see them; bf16 is faster where the processor has it"
    )


class Pictures:
    """Some images of one set, as evaluation sees them.

    Args:
        images: The set.
        rows: Which of it.

    Attributes:
        images: The set.
        rows: Which of it.
        class_N: Their classes.
        domain_N: Their domains.
    """

    def __init__(self, images: ImageSet, rows: Sequence[int]) -> None:
        self.images = images
        self.rows = tuple(rows)
        self.class_N = images.class_N[list(self.rows)]
        self.domain_N = images.domain_N[list(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, wanted_N: Tensor) -> Pictures:
        """Those for which a mask is true."""
        kept = [row for row, is_kept in zip(self.rows, wanted_N.tolist(), strict=True) if is_kept]
        return Pictures(self.images, kept)

    def first(self, k: int) -> Pictures:
        """The first k of each domain and class."""
        seen: dict[tuple[int, int], int] = {}
        rows = []
        for row in self.rows:
            cell = (int(self.images.domain_N[row]), int(self.images.class_N[row]))
            seen[cell] = seen.get(cell, 0) + 1
            if seen[cell] <= k:
                rows.append(row)
        return Pictures(self.images, rows)

    def pixels(self, places: Sequence[int]) -> Tensor:
        """pixels_BCSS, float32 from 0 to 255, of some of them."""
        return torch.stack([self.images.image(self.rows[place]) for place in places]).float()


def everything(images: ImageSet) -> Pictures:
    """All images of a set."""
    return Pictures(images, range(len(images)))


@dataclass
class Material:
    """Images that every model of a battery is asked with.

    Attributes:
        context: The backbone, and the classes and domains that were trained on.
        whole: The manifest with all its classes.
        forget: What was to be forgotten, as in `adu.data.forget`.
        config: How many images, and in which precision.
    """

    context: Context
    whole: Manifest
    forget: tuple[str, ...]
    config: MaterialConfig = MaterialConfig()

    @cached_property
    def members(self) -> Pictures:
        """What the model was trained on."""
        return everything(self.context.read(self._split[0]))

    @cached_property
    def fresh(self) -> Pictures:
        """Training images that it was not trained on."""
        return everything(self.context.read(self._split[1]))

    @cached_property
    def test(self) -> Pictures:
        """Test images."""
        manifest = self.context.manifest
        return everything(self.context.read(self._sampled(manifest)))

    @cached_property
    def pool(self) -> Pictures:
        """What an attacker has: training images, those that nobody was trained on first."""
        return everything(self.context.read(np.concatenate(self._split[::-1])))

    @cached_property
    def novel(self) -> tuple[tuple[str, ...], Pictures] | None:
        """Classes that were not trained on, and test images of them in the domains that were."""
        names = tuple(name for name in self.whole.classes if name not in self.context.classes)
        if not names:
            return None
        manifest = self.whole.select(names, self.context.domains)
        other = replace(self.context, manifest=manifest)
        return names, everything(other.read(self._sampled(manifest)))

    def forgotten(self, pictures: Pictures) -> Pictures:
        """Those that are to be forgotten."""
        return pictures.where(self._is_forgotten(pictures))

    def kept(self, pictures: Pictures) -> Pictures:
        """Those that are to be kept."""
        return pictures.where(~self._is_forgotten(pictures))

    def autocast(self) -> torch.autocast:
        """Within it models see images in the precision that was asked for."""
        return autocast(self.config.precision, self.context.device)

    @torch.no_grad()
    def features(
        self, model: Method, pictures: Pictures, change: PixelChange | None = None
    ) -> Tensor:
        """A model's unit-length features_NE of images, on the CPU.

        Args:
            model: The model.
            pictures: The images.
            change: What is done to their pixels first.
        """
        device = model.task.text_CE.device
        shares = [torch.zeros(0, model.task.text_CE.shape[1])]
        for start in range(0, len(pictures), EVAL_BATCH_SIZE):
            pixels_BCSS = pictures.pixels(range(start, min(start + EVAL_BATCH_SIZE, len(pictures))))
            if change is not None:
                pixels_BCSS = change(pixels_BCSS).clamp(0, 255)
            images_BCSS = normalised(pixels_BCSS.to(device), model.backbone.transform)
            with self.autocast():
                features_BE = model.unit_features(images_BCSS)
            shares.append(features_BE.cpu())
        return torch.cat(shares)

    @torch.no_grad()
    def accuracy(
        self, model: Method, pictures: Pictures, change: PixelChange | None = None
    ) -> float:
        """How often another model than a subject is right, maybe on changed pixels."""
        model.eval()
        features_NE = self.features(model, pictures, change).to(model.task.text_CE.device)
        return accuracy(model.class_logits(features_NE).cpu(), pictures)

    def _is_forgotten(self, pictures: Pictures) -> Tensor:
        classes, domains = self.context.classes, self.context.domains
        if self.novel is not None and pictures.images is self.novel[1].images:
            classes = self.novel[0]
        forget_CD = torch.from_numpy(forget_mask(self.forget, classes, domains))
        return forget_CD[pictures.class_N, pictures.domain_N]

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        manifest, data = self.context.manifest, self.context.config.data
        spare = min(manifest.cell_counts("train").values()) - data.shots
        n_fresh = max(0, min(spare, self.config.fresh_per_cell))
        drawn = manifest.few_shot_split(data.shots, n_fresh, data.split_seed)
        return drawn.train_rows, drawn.val_rows

    def _sampled(self, manifest: Manifest) -> np.ndarray:
        """Rows of test images, so many of each cell, always the same ones."""
        rows = manifest.test_rows()
        table = manifest.columns(["image_id", "class", "domain"], rows)
        numbers = (manifest.numbers(column, table) for column in ("domain", "class"))
        cell_N = list(zip(*numbers, strict=True))
        seen: dict[tuple[int, int], int] = {}
        kept = []
        # At random, since neighbours may well be pictures of one thing.
        for place in np.random.default_rng(0).permutation(len(rows)).tolist():
            cell = cell_N[place]
            seen[cell] = seen.get(cell, 0) + 1
            if seen[cell] <= self.config.test_per_cell:
                kept.append(rows[place])
        return np.sort(np.array(kept, np.int64))


@dataclass
class Subject:
    """A model under attack.

    Attributes:
        label: What it is called in tables.
        seed: Which of its runs.
        run: What trained it.
        model: The model, in evaluation mode.
        material: What it is asked with.
        never_shown: The same method and seed, never shown the forget domains; None if there is
            none to compare with.
    """

    label: str
    seed: int
    run: RunConfig
    model: Method
    material: Material
    never_shown: Method | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        self._features: dict[int, Tensor] = {}

    @property
    def forgotten_test(self) -> Pictures:
        """Test images of the forget domains."""
        return self.material.forgotten(self.material.test)

    def features(self, pictures: Pictures) -> Tensor:
        """Unit-length features_NE on the CPU; each image of a set is run once."""
        key = id(pictures.images)
        if key not in self._features:
            self._features[key] = self.material.features(self.model, everything(pictures.images))
        return self._features[key][list(pictures.rows)]

    @torch.no_grad()
    def logits(self, pictures: Pictures, text_CE: Tensor | None = None) -> Tensor:
        """Class scores_NC on the CPU.

        Args:
            pictures: The images.
            text_CE: What to compare them with, if not what the model does.
        """
        features_NE = self.features(pictures).to(self.material.context.device)
        return self.model.class_logits(features_NE, text_CE).cpu()

    def accuracy(self, pictures: Pictures) -> float:
        """How often it is right."""
        return accuracy(self.logits(pictures), pictures)

    @torch.no_grad()
    def accuracy_among(self, classes: tuple[str, ...], pictures: Pictures) -> float:
        """How often it is right where these classes, numbered in this order, are all there are."""
        asked = self.on(self.model.backbone, classes)
        features_NE = self.features(pictures).to(self.material.context.device)
        return accuracy(asked.class_logits(features_NE).cpu(), pictures)

    def on(self, backbone: Backbone, classes: tuple[str, ...] | None = None) -> Method:
        """The same trained model on another backbone, or for other classes."""
        task, template = self.model.task, self.model.task.template
        classes = task.classes if classes is None else classes
        text_CE = backbone.text_features(classes, template)
        other = replace(task, classes=classes, text_CE=text_CE)
        return rebuilt(self.model, self.run, backbone, other)


def rebuilt(model: Method, run: RunConfig, backbone: Backbone, task: Task) -> Method:
    """A trained model once more, on a backbone and for a task."""
    device = task.text_CE.device
    same = build_method(run.method, backbone, task).to(device).eval()
    same.load_state_dict(model.state_dict())
    return same


def copied(backbone: Backbone) -> Backbone:
    """A backbone whose weights may be changed without harm to anybody else."""
    from adu.models.towers import open_tower  # loaded with the model by now

    clip = copy.deepcopy(backbone.clip)
    return replace(backbone, clip=clip, tower=open_tower(clip.visual, backbone.name))


def accuracy(logits_NC: Tensor, pictures: Pictures) -> float:
    """How often the highest score is that of the true class."""
    return (logits_NC.argmax(dim=-1) == pictures.class_N).float().mean().item()
