"""What is loaded once and then serves run after run: the frozen model and the decoded images.

Tensor names carry their shape: N images, B images of a batch, C classes, E feature
width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adu.config import StrictModel
from adu.data.cache import ImageCache
from adu.data.decoded import DataConfig, ImageSet, eval_batch, name_images, select_images
from adu.data.few_shot import FewShotSplit
from adu.data.forget import check_forget_set
from adu.data.manifest import Manifest, described_manifest, load_manifest
from adu.data.pixels import Pixels, pixels_in_memory, write_pixels
from adu.data.reading import (
    STORED_SIZE_FACTOR,
    Finish,
    decoded,
    image_set,
    read_images,
    stored,
    stream_views,
    viewed,
)
from adu.data.split_file import read_split
from adu.demo.manifest import demo_manifest
from adu.methods import Task
from adu.models.backbone import Backbone, BackboneConfig

# Test images that are streamed are read in blocks of so many, two of which are in memory.
STREAM_BLOCK = 512

FEATURE_BATCH_SIZE = 64
GIB = 2**30

DEMO = "demo"


class ContextConfig(StrictModel):
    """The model and the data of a search; the same for all its runs."""

    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    few_shot_file: str | None = Field(
        None, description="the few-shot split, drawn before; a job writes its own; unset: drawn"
    )


@dataclass
class Context:
    """A frozen model and the data that it is tuned on.

    Images of the few-shot split are read and decoded at first use and stay: in memory, or with an
    image cache once for all processes of a job on a machine. So do those of the test split, when
    somebody evaluates on it for the first time: in memory up to ``data.cache_gib``, on the disk
    of the machine up to ``data.disk_gib``; a larger one is streamed.

    Attributes:
        config: What was asked for.
        backbone: The frozen model.
        manifest: The images, with the classes and domains asked for.
        text_CE: Text features of the classes.
        device: Where the model is.
        cache: Where decoded images are shared with other processes; None to keep them alone.
        remembered: What holds for all runs and takes long to find out, by a name for it.
    """

    config: ContextConfig
    backbone: Backbone
    manifest: Manifest
    text_CE: Tensor
    device: torch.device
    cache: ImageCache | None = None
    remembered: dict[str, Any] = field(default_factory=dict, init=False)

    @cached_property
    def train(self) -> ImageSet:
        """The few-shot training images, large ones reduced unless ``data.reduce_large`` is off."""
        manifest, split = self._few_shot
        rows, most = split.train_rows, self._stored_size
        n_bytes = self._stored_bytes(manifest, rows)
        return self._hold(manifest, f"stored {most}", rows, stored(most), n_bytes)

    @cached_property
    def val(self) -> ImageSet:
        """The few-shot validation images, as evaluation sees them."""
        manifest, split = self._few_shot
        return self._hold_views(manifest, split.val_rows)

    @cached_property
    def train_views(self) -> ImageSet:
        """The few-shot training images, as evaluation sees them."""
        manifest, split = self._few_shot
        return self._hold_views(manifest, split.train_rows)

    @cached_property
    def quick_val(self) -> list[int]:
        """Numbers of the validation images for a quick look: always the same ones."""
        most = self.config.data.quick_val_shots
        place_N = self._few_shot[1].val_places
        is_quick_N = np.ones(len(place_N), bool) if most is None else place_N < most
        return np.flatnonzero(is_quick_N).tolist()

    @cached_property
    def test(self) -> ImageSet | None:
        """The test split as evaluation sees it, read now; None if it is too large to be kept."""
        rows, data = self.manifest.test_rows(), self.config.data
        n_bytes = self._view_bytes(rows)
        in_memory = n_bytes <= data.cache_gib * GIB
        if self.cache is None:
            return self._hold_views(self.manifest, rows) if in_memory else None
        if not in_memory and n_bytes > data.disk_gib * GIB:
            return None
        finish = viewed(self.backbone.transform)
        pixels = self._share(self.manifest, "views", rows, finish, n_bytes, on_disk=not in_memory)
        # Without room for one copy there is none for a copy in every process either.
        return None if pixels is None else image_set(self.manifest, rows, pixels)

    def test_images(self, own: slice) -> Iterator[ImageSet]:
        """Images of the test split as evaluation sees them, in the order of the manifest.

        Args:
            own: Which of them.

        Yields:
            All of them at once if they are kept; else blocks, which are read when they are due.
        """
        rows = self.manifest.test_rows()[own]
        if self.test is not None:
            yield self.test.only(own)
        else:
            threads = self.config.data.read_threads
            yield from stream_views(
                self.manifest, rows, self.backbone.transform, STREAM_BLOCK, threads
            )

    @cached_property
    @torch.no_grad()
    def train_features(self) -> Tensor:
        """Unit-length features_NE of the training images, by the untouched model."""
        shares = []
        for start in range(0, len(self.train), FEATURE_BATCH_SIZE):
            rows = range(start, min(start + FEATURE_BATCH_SIZE, len(self.train)))
            images_BCHW = eval_batch(self.train, rows, self.backbone.transform, self.device)
            shares.append(self.backbone.clip.encode_image(images_BCHW).float())
        return F.normalize(torch.cat(shares), dim=-1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their numbers."""
        return self.manifest.classes

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names, in the order of their numbers."""
        return self.manifest.domains

    def task(self, forget: tuple[str, ...]) -> Task:
        """The unlearning task for one forget set.

        Raises:
            UserError: If the forget set is empty, unknown or everything.
        """
        check_forget_set(forget, self.classes, self.domains)
        template = self.config.backbone.template
        return Task(self.classes, self.domains, forget, self.text_CE, template)

    @cached_property
    def _few_shot(self) -> tuple[Manifest, FewShotSplit]:
        """The few-shot split, and the manifest that its rows are of."""
        data, file = self.config.data, self.config.few_shot_file
        if file is not None:
            return read_split(self.manifest, data, file)
        split = self.manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)
        return self.manifest, split

    def read(self, rows: np.ndarray) -> ImageSet:
        """Reads images of the manifest, as evaluation sees them, into memory."""
        finish = viewed(self.backbone.transform)
        return read_images(self.manifest, rows, finish, self.config.data.read_threads)

    @property
    def _stored_size(self) -> int | None:
        """The short side that training images have at most."""
        if not self.config.data.reduce_large:
            return None
        return STORED_SIZE_FACTOR * self.backbone.transform.image_size

    def _hold_views(self, manifest: Manifest, rows: np.ndarray) -> ImageSet:
        finish = viewed(self.backbone.transform)
        return self._hold(manifest, "views", rows, finish, self._view_bytes(rows))

    def _hold(
        self, manifest: Manifest, kind: str, rows: np.ndarray, finish: Finish, n_bytes: int
    ) -> ImageSet:
        """Reads images into memory, or maps what a process of the job has read."""
        pixels = self._share(manifest, kind, rows, finish, n_bytes)
        if pixels is None:
            images = decoded(manifest, rows, self.config.data.read_threads, finish)
            pixels = pixels_in_memory(images, len(rows))
        return image_set(manifest, rows, pixels)

    def _share(
        self,
        manifest: Manifest,
        kind: str,
        rows: np.ndarray,
        finish: Finish,
        n_bytes: int,
        on_disk: bool = False,
    ) -> Pixels | None:
        """Maps images out of the cache; None if there is none, or no room in it."""
        if self.cache is None:
            return None

        def write(file: Path) -> None:
            images = decoded(manifest, rows, self.config.data.read_threads, finish)
            write_pixels(file, images, len(rows))

        # By name: a few-shot split in a file counts its rows from 0.
        ids = "\n".join(manifest.columns(["image_id"], rows)["image_id"].to_pylist())
        which = hashlib.sha256(ids.encode()).hexdigest()
        how = f"{kind} {self.backbone.transform}"
        key = "|".join((manifest.url, manifest.digest, how, which))
        return self.cache.get(key, n_bytes, write, on_disk)

    def _view_bytes(self, rows: np.ndarray) -> int:
        return view_bytes(len(rows), self.backbone.transform.image_size)

    def _stored_bytes(self, manifest: Manifest, rows: np.ndarray) -> int:
        size, reduce = self.backbone.transform.image_size, self.config.data.reduce_large
        return stored_bytes(manifest, rows, size, reduce)


def view_bytes(n_images: int, image_size: int) -> int:
    """Memory of images as evaluation sees them."""
    return n_images * 3 * image_size**2


def stored_bytes(
    manifest: Manifest, rows: np.ndarray, image_size: int, reduce_large: bool = True
) -> int:
    """Memory of decoded training images.

    Args:
        manifest: Lists them.
        rows: Their row numbers.
        image_size: Of the model, in pixels.
        reduce_large: Whether large ones are reduced.
    """
    sizes = manifest.columns(["width", "height"], rows)
    width_N, height_N = (sizes[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    n_pixels_N = width_N * height_N
    if reduce_large:
        stored_size = STORED_SIZE_FACTOR * image_size
        n_pixels_N *= np.minimum(1, stored_size / np.minimum(width_N, height_N)) ** 2
    return int(3 * n_pixels_N.sum())


def load_context(
    config: ContextConfig, device: torch.device, cache: ImageCache | None = None
) -> Context:
    """Loads the model and the manifest; images follow when they are needed.

    Args:
        config: What to load.
        device: Where the model is to be.
        cache: Where decoded images are shared with other processes of the job.

    Raises:
        UserError: If the model or the manifest cannot be used.
    """
    return open_context(config, _selected(config), device, cache)


def _selected(config: ContextConfig) -> Manifest:
    """The part of the manifest that is asked for.

    Where the few-shot split is known, whoever drew it has looked at the rows.
    """
    url = config.data.manifest
    known = config.few_shot_file is not None
    if url == DEMO:
        manifest = demo_manifest()
    else:
        manifest = described_manifest(url) if known else load_manifest(url)
    return (name_images if known else select_images)(manifest, config.data)


def open_context(
    config: ContextConfig,
    manifest: Manifest,
    device: torch.device,
    cache: ImageCache | None = None,
    backbone: Backbone | None = None,
) -> Context:
    """Loads the model for a manifest that is there already.

    Args:
        config: What to load.
        manifest: The images.
        device: Where the model is to be.
        cache: Where decoded images are shared with other processes of the job.
        backbone: The model, if it is there already, too.

    Raises:
        UserError: If the model cannot be used.
    """
    from adu.models.openclip import load_backbone

    backbone = load_backbone(config.backbone, device)
    text_CE = backbone.text_features(manifest.classes, config.backbone.template)
    return Context(config, backbone, manifest, text_CE, device, cache)
