"""Decoded images and the batches that a model gets of them; `adu.data.reading` decodes them.

Tensor names carry their shape: B images of a batch, C channels, H height, W width, N images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from adu.config import StrictModel
from adu.data.manifest import Manifest
from adu.data.pixels import Pixels, pixels_in_memory
from adu.data.preprocess import ImageTransform, normalised, view
from adu.data.resample import resize_batch
from adu.errors import UserError

CPU = torch.device("cpu")

CROP_ATTEMPTS = 10
CROP_RATIO = (3 / 4, 4 / 3)


class DataConfig(StrictModel):
    """Which images, and how many of them to learn from."""

    manifest: str = Field("demo", description="folder or URL of a manifest, or 'demo'")
    classes: Literal["all", "base", "novel"] = Field(
        "all", description="base: the first half of the classes alone; novel: the others"
    )
    unseen_domains: tuple[str, ...] = Field((), description="domains that are left out")
    allow_uri: tuple[str, ...] = Field(
        (), description="where the images may lie beside the manifest's own places: URI prefixes"
    )
    shots: int = Field(8, ge=1, description="training images of each domain and class")
    val_shots: int = Field(4, ge=1, description="validation images of each domain and class")
    split_seed: int = Field(0, ge=0, description="which few-shot split is drawn")
    read_threads: int = Field(16, ge=1, description="images fetched at a time")
    reduce_large: bool = Field(
        True,
        description="keep large training images at twice the model's size; evaluation reads them "
        "as they are, whatever stands here",
    )
    cache_gib: float = Field(
        4, ge=0, description="GiB of a machine's memory for decoded test images"
    )
    disk_gib: float = Field(
        32, ge=0, description="GiB of its disk for them if they are more; still more are streamed"
    )


class ImageSet:
    """Decoded images of any size.

    Args:
        images: Their pixels, (height, width, channels), one by one or side by side already.
        image_ids: Names of the images.
        classes: Numbers of their classes.
        domains: Numbers of their domains.

    Attributes:
        image_ids: Names of the images.
        class_N: Their classes.
        domain_N: Their domains.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray] | Pixels,
        image_ids: Sequence[str],
        classes: Sequence[int],
        domains: Sequence[int],
    ) -> None:
        self.image_ids = tuple(image_ids)
        self.class_N = torch.tensor(classes, dtype=torch.long)
        self.domain_N = torch.tensor(domains, dtype=torch.long)
        if not isinstance(images, Pixels):
            images = pixels_in_memory(enumerate(images), len(images))
        self._starts, self._shapes = images.starts, images.shapes
        self._pixels = torch.from_numpy(images.flat)

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, i: int) -> Tensor:
        """The pixels of one image as uint8, (channels, height, width), without a copy."""
        start, (height, width, channels) = self._starts[i], self._shapes[i]
        pixels = self._pixels[start : start + height * width * channels]
        return pixels.view(height, width, channels).permute(2, 0, 1)

    def only(self, own: slice) -> ImageSet:
        """Some of the images, without a copy of their pixels."""
        pixels = Pixels(self._pixels.numpy(), self._starts[own], self._shapes[own])
        classes, domains = self.class_N[own].tolist(), self.domain_N[own].tolist()
        return ImageSet(pixels, self.image_ids[own], classes, domains)


def batches_of(images: ImageSet, batch_size: int) -> Iterator[list[int]]:
    """Numbers of images, a batch at a time."""
    for start in range(0, len(images), batch_size):
        yield list(range(start, min(start + batch_size, len(images))))


def select_images(manifest: Manifest, config: DataConfig) -> Manifest:
    """The part of a manifest that a configuration asks for, in which every domain can be tested.

    Raises:
        UserError: If it leaves an unknown domain out, or no class, or a domain cannot be tested.
    """
    selected = name_images(manifest, config)
    selected.check_test_images()
    return selected


def name_images(manifest: Manifest, config: DataConfig) -> Manifest:
    """The part of a manifest that a configuration asks for, without a look at its rows.

    Raises:
        UserError: If it leaves an unknown domain out, or no class.
    """
    known = manifest.domains
    for domain in config.unseen_domains:
        if domain not in known:
            raise UserError(
                f"context.data.unseen_domains '{domain}': unknown (known: {', '.join(known)})"
            )
    # As CoOp splits them: the larger half is the base.
    n_base = (len(manifest.classes) + 1) // 2
    classes = {
        "all": manifest.classes,
        "base": manifest.classes[:n_base],
        "novel": manifest.classes[n_base:],
    }[config.classes]
    if not classes:
        raise UserError(f"context.data.classes = '{config.classes}': leaves no class")
    seen = tuple(domain for domain in known if domain not in config.unseen_domains)
    return replace(manifest.select(classes, seen), allow_uri=config.allow_uri)


def train_batch(
    images: ImageSet,
    indices: Sequence[int],
    transform: ImageTransform,
    *,
    seed: int,
    epoch: int,
    device: torch.device = CPU,
) -> Tensor:
    """Augments images: random resized crop, horizontal flip, normalisation.

    What is drawn for an image depends on (seed, epoch, image id) alone, so neither on the other
    images of the batch nor on who makes it or on which device.

    Returns:
        images_BCHW on the device, float32; within two grey levels of Pillow's and torchvision's,
        apart from edges that overshoot black or white (six).
    """
    parts, mirrored = [], []
    for i in indices:
        image_CHW = images.image(i)
        rng = _generator(seed, epoch, images.image_ids[i])
        _, full_height, full_width = image_CHW.shape
        top, left, height, width = _random_crop(rng, full_height, full_width, transform.crop_scale)
        parts.append(image_CHW[:, top : top + height, left : left + width])
        mirrored.append(transform.hflip and rng.random() < 0.5)
    size, interpolation = transform.image_size, transform.interpolation
    return normalised(resize_batch(parts, mirrored, size, interpolation, device), transform)


def eval_batch(
    images: ImageSet,
    indices: Sequence[int],
    transform: ImageTransform,
    device: torch.device = CPU,
) -> Tensor:
    """Prepares images without chance, as open_clip's own transform does it to the bit.

    Returns:
        images_BCHW on the device, float32.
    """
    size = transform.image_size
    batch_BCHW = torch.empty((len(indices), 3, size, size), dtype=torch.uint8)
    for row_CHW, i in zip(batch_BCHW, indices, strict=True):
        row_CHW.copy_(_view(images.image(i), transform))
    return normalised(batch_BCHW.to(device), transform)


def balanced_batches(domain_N: Tensor, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Cuts an epoch into batches with equally many images of each domain.

    MMD compares the domains within a batch, so every batch needs all of them. Each image of the
    largest domain comes up once; smaller domains start over when they are through.

    Args:
        domain_N: Domain of each image.
        batch_size: Images in a batch; split as evenly as it goes, at least one of each domain.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        Image numbers of each batch.
    """
    rng = _generator(seed, epoch, "batches")
    members = [np.flatnonzero(domain_N.numpy() == d) for d in np.unique(domain_N.numpy())]
    shuffled = [rng.permutation(rows) for rows in members]
    per_domain = max(1, batch_size // len(members))
    n_largest = max(len(rows) for rows in members)
    batches = []
    for start in range(0, n_largest, per_domain):
        places = np.arange(start, min(start + per_domain, n_largest))
        batch = np.concatenate([rows[places % len(rows)] for rows in shuffled])
        batches.append(torch.from_numpy(batch))
    return batches


def plain_batches(n_images: int, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Cuts an epoch into batches without a look at the domains; the last one may be short.

    Returns:
        Image numbers of each batch.
    """
    order = torch.from_numpy(_generator(seed, epoch, "batches").permutation(n_images))
    return list(order.split(batch_size))


def _generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _view(image_CHW: Tensor, transform: ImageTransform) -> Tensor:
    """What evaluation sees of an image of bytes; of a view, all of it."""
    size = transform.image_size
    if image_CHW.shape[1:] == (size, size):
        return image_CHW
    image = Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(view(image, transform).copy()).permute(2, 0, 1)


def _random_crop(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random part of an image as (top, left, height, width), as torchvision draws it."""
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # No luck, as with very long images: the largest centred part with an allowed ratio.
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    h = min(height, round(width / ratio))
    w = min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w
