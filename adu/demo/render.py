"""Synthetic pictures of eight object classes in four domains, drawn from numbers alone.

`render` is a pure function of (seed, domain, class, index). Run this module to draw a contact
sheet: `python -m adu.demo.render --sheet adu/demo/contact_sheet.png`.

Shape suffixes: K = corners of one polygon, 2 = (x, y).
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from adu.demo.shapes import DRAWERS, FloatArray, Part, any_colour, blob, box, ellipse, ribbon
from adu.demo.styles import IMAGE_SIZE, STYLES, Scene

CLASSES: tuple[str, ...] = tuple(DRAWERS)
DOMAINS: tuple[str, ...] = tuple(STYLES)


def render(domain: str, class_name: str, index: int, seed: int) -> Image.Image:
    """Draw one 64 x 64 RGB picture.

    Args:
        domain: One of `DOMAINS`.
        class_name: One of `CLASSES`.
        index: Which picture of this class and domain.
        seed: Which data set; pre-training and evaluation use different seeds.

    Returns:
        The same picture for the same arguments, always.

    Example:
        >>> render("sketch", "cup", 0, seed=1).size
        (64, 64)
    """
    if domain not in STYLES:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
    if class_name not in DRAWERS:
        raise ValueError(f"class_name must be one of {', '.join(CLASSES)}, got {class_name!r}")
    rng = np.random.default_rng(_stable_key(f"{seed}/{domain}/{class_name}/{index}"))
    return STYLES[domain](compose(class_name, rng), rng)


def _stable_key(text: str) -> int:
    """A number that depends on the text only, unlike Python's salted hash()."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def compose(class_name: str, rng: np.random.Generator) -> Scene:
    """Put the object somewhere in the image and surround it with clutter."""
    radius = rng.uniform(0.24, 0.44)
    slack = max(0.0, 0.5 - radius * 0.95)
    centre_2 = 0.5 + rng.uniform(-slack, slack, 2)
    pose_22 = _pose(rng, radius)
    subject = [
        Part(part.points_K2 @ pose_22.T + centre_2, part.colour)
        for part in DRAWERS[class_name](rng)
    ]
    behind = [_clutter(rng, rng.uniform(0, 1, 2)) for _ in range(int(rng.integers(0, 5)))]
    front = []
    if rng.uniform() < 0.35:
        direction = rng.uniform(0, 2 * np.pi)
        edge_2 = centre_2 + radius * np.array([np.cos(direction), np.sin(direction)])
        front.append(_clutter(rng, edge_2))
    return Scene(behind, subject, front)


def _pose(rng: np.random.Generator, radius: float) -> FloatArray:
    """A linear map: mirror, stretch, shear, turn and scale."""
    stretch = rng.uniform(0.85, 1.15)
    mirror = rng.choice([-1.0, 1.0])
    shape_22 = np.array([[mirror * stretch, rng.uniform(-0.15, 0.15)], [0.0, 1 / stretch]])
    angle = np.clip(rng.normal(0, 0.22), -0.6, 0.6)
    turn_22 = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scaled_22: FloatArray = radius * turn_22 @ shape_22
    return scaled_22


def _clutter(rng: np.random.Generator, position_2: FloatArray) -> Part:
    """A disc, bar, block or blob that belongs to no class."""
    x, y = position_2
    size = rng.uniform(0.06, 0.14)
    kind = int(rng.integers(4))
    if kind == 0:
        points_K2 = ellipse(x, y, size, size * rng.uniform(0.6, 1.0))
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        reach_2 = np.array([np.cos(angle), np.sin(angle)]) * size * 2.2
        points_K2 = ribbon(np.array([position_2 - reach_2, position_2 + reach_2]), size * 0.5)
    elif kind == 2:
        points_K2 = box(x - size, y - size * 0.7, x + size, y + size * 0.7)
    else:
        points_K2 = blob(rng, x, y, size, size, 5, 0.35)
    return Part(points_K2, any_colour(rng))


def contact_sheet(per_cell: int, seed: int) -> Image.Image:
    """One row a class; the domains side by side, `per_cell` pictures of each."""
    gap = 4
    cell = IMAGE_SIZE + gap
    width = len(DOMAINS) * (per_cell * cell + gap) + gap
    sheet = Image.new("RGB", (width, len(CLASSES) * cell + gap), (255, 255, 255))
    for row, class_name in enumerate(CLASSES):
        for column, domain in enumerate(DOMAINS):
            for index in range(per_cell):
                x = gap + column * (per_cell * cell + gap) + index * cell
                picture = render(domain, class_name, index, seed)
                sheet.paste(picture, (x, gap + row * cell))
    return sheet


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(description=contact_sheet.__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--per-cell", type=int, default=3, help="pictures per class and domain")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sheet = contact_sheet(arguments.per_cell, arguments.seed)
    # 256 colours are enough for a look and a third of the bytes.
    sheet.quantize(256).save(arguments.sheet, optimize=True)


if __name__ == "__main__":
    main()
