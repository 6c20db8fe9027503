"""How a backbone wants its images, and what it sees of one: bit for bit what open_clip gives it.

Evaluation, the classifier and the served model all prepare images here, so that what is measured
is what is deployed. As in open_clip's own transform, Pillow resizes.

Tensor names carry their shape: B images of a batch, C channels, S the model's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# Of an image that is longer than so many squares, only the square in its middle is resized: one of
# 60000 x 3 pixels would take gigabytes. Pillow takes the part's place in single precision, so that
# these images alone are a grey level or two from open_clip's.
MOST_SQUARES = 64


@dataclass(frozen=True)
class ImageTransform:
    """How a model wants its images.

    Attributes:
        image_size: Height and width in pixels.
        mean: Of each channel, subtracted after scaling to [0, 1].
        std: Of each channel.
        interpolation: ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest``: the short side is resized to the model's size and the square in
            the middle is cut out; ``longest``: the long side, and the rest is filled; ``squash``:
            both sides, whatever the image's shape.
        fill: Grey level of what is filled.
        crop_scale: Share of the area that a training crop covers, at least and at most.
        hflip: Whether half of the training images are mirrored.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: bool = True


def view(image: Image.Image, transform: ImageTransform) -> np.ndarray:
    """What a model sees of an image, before normalisation.

    Args:
        image: Upright, in 8-bit RGB, of any size.
        transform: How the model wants it.

    Returns:
        Bytes, (S, S, channels). A view's view is the view itself.
    """
    size, method = transform.image_size, RESAMPLING[transform.interpolation]
    if image.size == (size, size):
        return np.asarray(image)
    if transform.resize_mode == "squash":
        return np.asarray(image.resize((size, size), method))
    if transform.resize_mode == "longest":
        return np.asarray(_padded(image, transform))
    return _central_square(image, transform)


def normalised(views_BCSS: Tensor, transform: ImageTransform) -> Tensor:
    """Bytes of views as the numbers that the model takes.

    The same to the bit on every device: each step is one correctly rounded operation.

    Returns:
        images_BCSS, float32, on the views' device.
    """
    # By a tensor: a GPU multiplies by the reciprocal of a plain number.
    levels, mean_C11, std_C11 = (
        torch.tensor(values, dtype=torch.float32, device=views_BCSS.device)
        for values in (255, _columns(transform.mean), _columns(transform.std))
    )
    return views_BCSS.float().div_(levels).sub_(mean_C11).div_(std_C11)


def _columns(values: tuple[float, ...]) -> list[list[list[float]]]:
    return [[[value]] for value in values]


def _central_square(image: Image.Image, transform: ImageTransform) -> np.ndarray:
    size, method = transform.image_size, RESAMPLING[transform.interpolation]
    short = min(image.size)
    # Rounded down, and the middle to even numbers: as torchvision does it.
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    square = (left, top, left + size, top + size)
    if max(width, height) <= MOST_SQUARES * size:
        return np.asarray(image.resize((width, height), method).crop(square))
    across, down = image.width / width, image.height / height
    part = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(image.resize((size, size), method, box=part))


def _padded(image: Image.Image, transform: ImageTransform) -> Image.Image:
    size, method = transform.image_size, RESAMPLING[transform.interpolation]
    ratio = max(image.size) / size
    width, height = (max(1, round(side / ratio)) for side in image.size)
    resized = image.resize((width, height), method)
    left, top = (size - width) // 2, (size - height) // 2
    border = (left, top, size - width - left, size - height - top)
    return ImageOps.expand(resized, border, (transform.fill,) * 3)
