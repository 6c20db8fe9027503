"""Decoded pixels in one flat buffer, which may be a file that several processes map.

Tensor names carry their shape: N images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A buffer begins with room for as many images as large as the first, up to so many bytes, and grows
# by this factor.
MOST_AT_FIRST = 2**28
GROWTH = 1.25


@dataclass(frozen=True)
class Pixels:
    """Images of any size, one after another in any order.

    Attributes:
        flat: All their bytes.
        starts: Where each image begins.
        shapes: Height, width and channels of each.
    """

    flat: np.ndarray
    starts: Sequence[int]
    shapes: Sequence[tuple[int, ...]]

    def image(self, i: int) -> np.ndarray:
        """One image, (height, width, channels), without a copy."""
        start, shape = self.starts[i], self.shapes[i]
        return self.flat[start : start + int(np.prod(shape))].reshape(shape)


def pixels_in_memory(images: Iterable[tuple[int, np.ndarray]], n: int) -> Pixels:
    """Puts images side by side.

    Args:
        images: Place and pixels of each, in any order.
        n: How many there are.
    """
    starts, shapes = [0] * n, [(0, 0, 3)] * n
    flat, end = np.empty(0, np.uint8), 0
    for place, image in images:
        # As they come, while others decode, not all at the end. No one else has `flat` yet.
        if flat.size == 0:
            flat = np.empty(max(image.size, min(n * image.size, MOST_AT_FIRST)), np.uint8)
        elif end + image.size > flat.size:
            flat.resize(max(end + image.size, int(GROWTH * flat.size)), refcheck=False)
        starts[place], shapes[place] = end, image.shape
        flat[end : end + image.size] = image.reshape(-1)
        end += image.size
    flat.resize(end, refcheck=False)
    return Pixels(flat, starts, shapes)


def write_pixels(file: Path, images: Iterable[tuple[int, np.ndarray]], n: int) -> None:
    """Writes images to a file, one at a time, so that `map_pixels` finds all of them or none."""
    starts, shapes = [0] * n, [(0, 0, 3)] * n
    end = 0
    with _part(file).open("wb") as stream:
        for place, image in images:
            starts[place], shapes[place] = end, image.shape
            stream.write(np.ascontiguousarray(image, np.uint8).data)
            end += image.size
    index = {"starts": starts, "shapes": shapes}
    _part(_index(file)).write_text(json.dumps(index))
    _part(file).replace(file)
    # Last: who finds the index finds the pixels.
    _part(_index(file)).replace(_index(file))


def map_pixels(file: Path) -> Pixels | None:
    """Maps what `write_pixels` has written; None if it has not, or not to its end."""
    if not _index(file).exists():
        return None
    index = json.loads(_index(file).read_text())
    # Copy-on-write, since torch has no tensors that cannot be written. Nobody writes.
    flat = np.memmap(file, np.uint8, "c") if file.stat().st_size else np.empty(0, np.uint8)
    return Pixels(flat, index["starts"], [tuple(shape) for shape in index["shapes"]])


def _index(file: Path) -> Path:
    return file.with_suffix(".json")


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")
