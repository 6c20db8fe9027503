"""From manifest rows to batches: decoded few-shot images in memory, the test split streamed.

Tensor names carry their shape: B images of a batch, C channels, H height, W width, N images.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from adu import storage
from adu.config import StrictModel
from adu.errors import UserError
from adu.images import decode_image
from adu.manifest import Manifest

# A file to which every read of an image is appended as "<unix time> <uri>": lets a test see when
# the test split is first touched.
READ_LOG_VARIABLE = "ADU_READ_LOG"

CROP_ATTEMPTS = 10
CROP_RATIO = (3 / 4, 4 / 3)


class DataConfig(StrictModel):
    """Which images, and how many of them to learn from."""

    manifest: str = Field("demo", description="folder or URL of a manifest, or 'demo'")
    classes: Literal["all", "base", "novel"] = Field(
        "all", description="base: the first half of the classes alone; novel: the others"
    )
    unseen_domains: tuple[str, ...] = Field((), description="domains that are left out")
    shots: int = Field(8, ge=1, description="training images of each domain and class")
    val_shots: int = Field(4, ge=1, description="validation images of each domain and class")
    split_seed: int = Field(0, ge=0, description="which few-shot split is drawn")
    read_threads: int = Field(8, ge=1, description="images fetched at a time")


@dataclass(frozen=True)
class ImageTransform:
    """How a model wants its images.

    Attributes:
        image_size: Height and width in pixels.
        mean: Of each channel, subtracted after scaling to [0, 1].
        std: Of each channel.
        interpolation: ``bicubic`` or ``bilinear``.
        crop_scale: Share of the area that a training crop covers, at least and at most.
        hflip: Whether half of the training images are mirrored.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: bool = True


class ImageSet:
    """Decoded images of any size, in one flat buffer of bytes.

    Attributes:
        image_ids: Names of the images.
        class_N: Their classes.
        domain_N: Their domains.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        image_ids: Sequence[str],
        classes: Sequence[int],
        domains: Sequence[int],
    ) -> None:
        self.image_ids = tuple(image_ids)
        self.class_N = torch.tensor(classes, dtype=torch.long)
        self.domain_N = torch.tensor(domains, dtype=torch.long)
        self._shapes = [image.shape for image in images]
        self._offsets = np.cumsum([0, *(image.size for image in images)])
        flat = np.concatenate([image.reshape(-1) for image in images]) if images else np.empty(0)
        self._pixels = torch.from_numpy(flat.astype(np.uint8, copy=False))

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, i: int) -> Tensor:
        """The pixels of one image as uint8, (channels, height, width), without a copy."""
        pixels = self._pixels[self._offsets[i] : self._offsets[i + 1]]
        return pixels.view(self._shapes[i]).permute(2, 0, 1)


def select_images(manifest: Manifest, config: DataConfig) -> Manifest:
    """The part of a manifest that a configuration asks for.

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
    return manifest.select(classes, seen)


def read_images(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, max_short_side: int, threads: int
) -> ImageSet:
    """Fetches and decodes images.

    Args:
        manifest: The manifest that lists them.
        rows: Their row numbers.
        max_short_side: Larger images are reduced to this short side, to save memory.
        threads: Images fetched at a time.

    Raises:
        UserError: Naming an image that cannot be read or is not the one that was ingested.
    """
    table = manifest.table.select(["image_id", "uri", "sha256"]).take(list(rows)).to_pydict()

    def read(i: int) -> np.ndarray:
        uri = table["uri"][i]
        data = _fetch(uri)
        if hashlib.sha256(data).hexdigest() != table["sha256"][i]:
            raise UserError(f"image {uri}: has changed since the manifest was written")
        return np.asarray(_reduced(decode_image(data, uri), max_short_side))

    with ThreadPoolExecutor(threads) as pool:
        images = list(pool.map(read, range(len(table["uri"]))))
    classes, domains = manifest.class_numbers(list(rows)), manifest.domain_numbers(list(rows))
    return ImageSet(images, table["image_id"], classes, domains)


def train_batch(
    images: ImageSet,
    indices: Sequence[int],
    transform: ImageTransform,
    *,
    seed: int,
    epoch: int,
) -> Tensor:
    """Augments images: random resized crop, horizontal flip, normalisation.

    What is drawn for an image depends on (seed, epoch, image id) alone, so neither on the other
    images of the batch nor on who makes it.

    Returns:
        images_BCHW, float32.
    """
    views = [_random_view(images, i, transform, seed, epoch) for i in indices]
    return _normalised(views, transform)


def eval_batch(images: ImageSet, indices: Sequence[int], transform: ImageTransform) -> Tensor:
    """Prepares images without chance: short side resized, centre cropped, normalised.

    Returns:
        images_BCHW, float32.
    """
    return _normalised([_central_view(images.image(i), transform) for i in indices], transform)


def stream_batches(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    transform: ImageTransform,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[str, ...]]]:
    """Reads images batch by batch, holding two batches at a time.

    Nothing is read before the first batch is asked for.

    Yields:
        images_BCHW, class_B, domain_B and the image ids.
    """
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def read(chunk: Sequence[int] | np.ndarray) -> ImageSet:
        return read_images(manifest, chunk, 2 * transform.image_size, threads)

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(read, chunks[0]) if chunks else None
        for following in [*chunks[1:], None]:
            assert pending is not None
            batch = pending.result()
            pending = ahead.submit(read, following) if following is not None else None
            images_BCHW = eval_batch(batch, range(len(batch)), transform)
            yield images_BCHW, batch.class_N, batch.domain_N, batch.image_ids


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


def _fetch(uri: str) -> bytes:
    log = os.environ.get(READ_LOG_VARIABLE)
    if log:
        with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123 - appended to by many
            file.write(f"{time.time()} {uri}\n")
    return storage.read_bytes(uri)


def _reduced(image: Image.Image, max_short_side: int) -> Image.Image:
    short = min(image.size)
    if short <= max_short_side:
        return image
    factor = max_short_side / short
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def _generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _random_view(
    images: ImageSet, i: int, transform: ImageTransform, seed: int, epoch: int
) -> Tensor:
    """A random part of an image, resized to the model's size, perhaps mirrored."""
    image_CHW = images.image(i)
    rng = _generator(seed, epoch, images.image_ids[i])
    _, full_height, full_width = image_CHW.shape
    top, left, height, width = _random_crop(rng, full_height, full_width, transform.crop_scale)
    crop_CHW = image_CHW[:, top : top + height, left : left + width]
    crop_CHW = _resize(crop_CHW, (transform.image_size, transform.image_size), transform)
    mirrored = transform.hflip and rng.random() < 0.5
    return crop_CHW.flip(-1) if mirrored else crop_CHW


def _central_view(image_CHW: Tensor, transform: ImageTransform) -> Tensor:
    """The central square of an image whose short side is resized to the model's size."""
    size = transform.image_size
    _, height, width = image_CHW.shape
    short = min(height, width)
    height, width = size * height // short, size * width // short
    resized_CHW = _resize(image_CHW, (height, width), transform)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized_CHW[:, top : top + size, left : left + size]


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


def _resize(image_CHW: Tensor, size: tuple[int, int], transform: ImageTransform) -> Tensor:
    return F.interpolate(image_CHW[None], size, mode=transform.interpolation, antialias=True)[0]


def _normalised(views: Sequence[Tensor], transform: ImageTransform) -> Tensor:
    """Joins uint8 images of the model's size into images_BCHW; none give an empty batch."""
    batch_BCHW = torch.empty(
        (len(views), 3, transform.image_size, transform.image_size), dtype=torch.uint8
    )
    for row, view_CHW in enumerate(views):
        batch_BCHW[row] = view_CHW
    mean_C11 = torch.tensor(transform.mean)[:, None, None]
    std_C11 = torch.tensor(transform.std)[:, None, None]
    return (batch_BCHW.float() / 255 - mean_C11) / std_C11
