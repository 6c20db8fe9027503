"""Parts of images, resized to one size as Pillow does it, on any device.

On a CPU each image goes through torch's own kernel for bytes, which is the fastest there. On
other devices a batch is two matrix products: a resize with antialiasing is linear in the rows and
in the columns, so the weights of every image stand in a matrix, zero where its part is smaller
than the largest of the batch. Both round to whole grey levels between the two, as Pillow does.

Tensor names carry their shape: B images, C channels, H and W height and width of the largest
part, S the size asked for, I input and O output places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Half the width of the kernels in input pixels, before they are widened to reduce.
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
# Pillow's, and torch's with antialiasing; without it torch takes -0.75.
CUBIC_A = -0.5


def resize(image_CHW: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resizes one image of bytes, with antialiasing."""
    if tuple(image_CHW.shape[1:]) == size:
        return image_CHW
    return F.interpolate(image_CHW[None], size, mode=interpolation, antialias=True)[0]


def resize_batch(
    parts: Sequence[Tensor],
    mirrored: Sequence[bool],
    size: int,
    interpolation: str,
    device: torch.device,
) -> Tensor:
    """Resizes images of bytes to squares, and mirrors some of them.

    Args:
        parts: Each (channels, height, width), on the CPU.
        mirrored: Which ones are mirrored.
        size: Height and width of the squares.
        interpolation: ``bicubic`` or ``bilinear``.
        device: Where it is done.

    Returns:
        images_BCSS on the device, uint8.
    """
    if device.type == "cpu":
        return _one_by_one(parts, mirrored, size, interpolation)
    return resize_together(parts, mirrored, size, interpolation, device)


def resize_together(
    parts: Sequence[Tensor],
    mirrored: Sequence[bool],
    size: int,
    interpolation: str,
    device: torch.device,
) -> Tensor:
    """`resize_batch` as two matrix products."""
    if not parts:
        return torch.empty((0, 3, size, size), dtype=torch.uint8, device=device)
    heights, widths = ([part.shape[axis] for part in parts] for axis in (1, 2))
    shape = (len(parts), 3, max(heights), max(widths))
    padded_BCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for row_CHW, part_CHW in zip(padded_BCHW, parts, strict=True):
        row_CHW[:, : part_CHW.shape[1], : part_CHW.shape[2]] = part_CHW
    images_BCHW = padded_BCHW.to(device, non_blocking=True).float()
    columns_BSW = resize_weights(widths, shape[3], size, interpolation, device)
    mirrored_B11 = torch.tensor(list(mirrored), device=device)[:, None, None]
    columns_BSW = torch.where(mirrored_B11, columns_BSW.flip(1), columns_BSW)
    rows_BSH = resize_weights(heights, shape[2], size, interpolation, device)
    narrow_BCHS = _whole_levels(images_BCHW @ columns_BSW.transpose(1, 2)[:, None])
    return _whole_levels(rows_BSH[:, None] @ narrow_BCHS).to(torch.uint8)


def resize_weights(
    lengths: Sequence[int], longest: int, size: int, interpolation: str, device: torch.device
) -> Tensor:
    """What each input place gives to each output place, for lines of several lengths.

    Args:
        lengths: Length of the line of each image.
        longest: Input places; those beyond a line's length give nothing.
        size: Output places.
        interpolation: ``bicubic`` or ``bilinear``.
        device: Where they are wanted.

    Returns:
        weights_BOI; every row sums to 1.
    """
    length_B11 = torch.tensor(lengths, dtype=torch.float32, device=device)[:, None, None]
    scale_B11 = length_B11 / size
    widened_B11 = scale_B11.clamp(min=1)
    place_1O1 = torch.arange(size, dtype=torch.float32, device=device)[None, :, None]
    place_11I = torch.arange(longest, dtype=torch.float32, device=device)[None, None, :]
    distance_BOI = (place_11I + 0.5 - (place_1O1 + 0.5) * scale_B11) / widened_B11
    weights_BOI = _kernel(distance_BOI.abs(), interpolation)
    weights_BOI = weights_BOI.masked_fill(place_11I >= length_B11, 0)
    return weights_BOI / weights_BOI.sum(dim=2, keepdim=True)


def _kernel(distance: Tensor, interpolation: str) -> Tensor:
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0)
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance * distance + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    inside = torch.where(distance < 1, near, far)
    return inside.masked_fill(distance >= SUPPORT["bicubic"], 0)


def _one_by_one(
    parts: Sequence[Tensor], mirrored: Sequence[bool], size: int, interpolation: str
) -> Tensor:
    batch_BCSS = torch.empty((len(parts), 3, size, size), dtype=torch.uint8)
    for row_CSS, part_CHW, is_mirrored in zip(batch_BCSS, parts, mirrored, strict=True):
        view_CSS = resize(part_CHW, (size, size), interpolation)
        row_CSS.copy_(view_CSS.flip(-1) if is_mirrored else view_CSS)
    return batch_BCSS


def _whole_levels(images: Tensor) -> Tensor:
    return images.round_().clamp_(0, 255)
