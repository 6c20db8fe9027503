"""The four domains: how a scene of coloured polygons becomes a photo, painting, clip art or sketch.

A style draws supersampled, for smooth edges, and shrinks at the end. Every function takes all
its randomness from the generator it is given.

Shape suffixes: H = height, W = width, C = colour channels, P = parts, K = corners, 2 = (x, y).
Coordinates of a scene run from 0 to 1 across the image, y down.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from adu.demo.shapes import Colour, FloatArray, Part, any_colour

IMAGE_SIZE = 64
FloatImage = NDArray[np.floating[Any]]

# Supersampling factors: outlines need more than shaded surfaces, which are blurred anyway.
SOFT_SCALE = 2
LINE_SCALE = 3


@dataclass(frozen=True)
class Scene:
    """What there is to draw: clutter behind, the object, and clutter in front of it."""

    behind: list[Part]
    subject: list[Part]
    front: list[Part]

    @property
    def parts(self) -> list[Part]:
        """Every part in painting order."""
        return self.behind + self.subject + self.front


def to_pixels(part: Part, size: int) -> list[float]:
    """The flat x, y, x, y list that Pillow draws fastest."""
    flat: list[float] = (part.points_K2 * size).ravel().tolist()
    return flat


def label_map(parts: list[Part], size: int) -> NDArray[np.uint8]:
    """An image whose pixels tell which part (from 1) is on top; 0 is the background."""
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    for number, part in enumerate(parts, start=1):
        draw.polygon(to_pixels(part, size), fill=number)
    return np.asarray(canvas)


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> FloatImage:
    """Random values on a coarse grid, enlarged smoothly; about -1 to 1."""
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def blur(image_HW: FloatImage, radius: float) -> FloatImage:
    """A box blur repeated twice, near enough to a Gaussian; values must lie in 0 to 1."""
    grey = Image.fromarray((image_HW * 255).astype(np.uint8))
    soft = grey.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, dtype=np.float32) / 255


def finish(image_HWC: FloatImage) -> Image.Image:
    """Clip to 0 to 1, convert to bytes and shrink to the final size."""
    pixels_HWC = (np.clip(image_HWC, 0, 1) * 255 + 0.5).astype(np.uint8)
    image = Image.fromarray(pixels_HWC)
    factor = image.width // IMAGE_SIZE
    return image.reduce(factor) if factor > 1 else image


def grid(size: int) -> tuple[FloatImage, FloatImage]:
    """The x and the y coordinate of every pixel, 0 to 1, ready to broadcast."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


# --- photo -------------------------------------------------------------------------------------


def photo(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Shaded surfaces, a soft shadow, a textured backdrop, lens blur and sensor noise."""
    size = IMAGE_SIZE * SOFT_SCALE
    backdrop_HWC = _photo_backdrop(rng, size)
    labels_HW = label_map(scene.parts, size)
    light = np.array([rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.8), -rng.uniform(0.4, 0.9)])
    shadow_HW = _shadow(labels_HW, light, rng)
    image_HWC = backdrop_HWC * (1 - shadow_HW[:, :, None])
    surface_HWC = _lit_surfaces(scene.parts, labels_HW, light, rng)
    image_HWC = np.where((labels_HW > 0)[:, :, None], surface_HWC, image_HWC)
    small_HWC = _shrink(image_HWC, SOFT_SCALE)
    return finish(_camera(small_HWC, rng))


def _photo_backdrop(rng: np.random.Generator, size: int) -> FloatImage:
    """A wall or sky above a table or ground, both with gradients and texture."""
    _, y_H1 = grid(size)
    horizon = rng.uniform(0.35, 0.85)
    upper, lower = _dull_colour(rng), _dull_colour(rng)
    softness = rng.uniform(0.01, 0.08)
    below_H1 = 1 / (1 + np.exp(-(y_H1 - horizon) / softness))
    below_HW = np.broadcast_to(below_H1, (size, size))[:, :, None]
    image_HWC = upper * (1 - below_HW) + lower * below_HW
    coarse_HW = smooth_noise(rng, int(rng.integers(3, 7)), size)
    fine_HW = smooth_noise(rng, int(rng.integers(16, 40)), size)
    texture_HW = 1 + rng.uniform(0.05, 0.16) * coarse_HW + rng.uniform(0.02, 0.09) * fine_HW
    gradient_H1 = 1 + rng.uniform(-0.35, 0.35) * (y_H1 - 0.5)
    return (image_HWC * (texture_HW * gradient_H1)[:, :, None]).astype(np.float32)


def _dull_colour(rng: np.random.Generator) -> FloatImage:
    """A colour of little saturation, as most backdrops in photos have."""
    grey = rng.uniform(0.3, 0.9)
    return (grey * rng.uniform(0.78, 1.15, 3)).astype(np.float32)


def _shadow(
    labels_HW: NDArray[np.uint8], light: FloatArray, rng: np.random.Generator
) -> FloatImage:
    """The blurred silhouette, moved away from the light."""
    size = labels_HW.shape[0]
    distance = rng.uniform(0.03, 0.07) * size
    shift_x, shift_y = int(-light[0] * distance), int(-light[1] * distance)
    mask_HW = np.roll((labels_HW > 0).astype(np.float32), (shift_y, shift_x), axis=(0, 1))
    return blur(mask_HW, rng.uniform(3, 7)) * np.float32(rng.uniform(0.4, 0.7))


def _lit_surfaces(
    parts: list[Part], labels_HW: NDArray[np.uint8], light: FloatArray, rng: np.random.Generator
) -> FloatImage:
    """Each part as a bulging surface: bright towards the light, dark away from it, with a gloss."""
    size = labels_HW.shape[0]
    low_P2 = np.array([[0.0, 0.0]] + [part.points_K2.min(axis=0) for part in parts])
    high_P2 = np.array([[1.0, 1.0]] + [part.points_K2.max(axis=0) for part in parts])
    # Thin parts (a mast, a bar) bulge less than their box suggests, hence the lower bound.
    half_P2 = np.maximum((high_P2 - low_P2) / 2, 0.05)
    middle_P2 = (low_P2 + high_P2) / 2
    x_1W, y_H1 = grid(size)
    across_HW = (x_1W - middle_P2[:, 0].astype(np.float32)[labels_HW]) / half_P2[:, 0].astype(
        np.float32
    )[labels_HW]
    down_HW = (y_H1 - middle_P2[:, 1].astype(np.float32)[labels_HW]) / half_P2[:, 1].astype(
        np.float32
    )[labels_HW]
    facing_HW = across_HW * np.float32(light[0]) + down_HW * np.float32(light[1])
    rim_HW = np.clip(across_HW**2 + down_HW**2, 0, 2)
    shade_HW = 1.0 + rng.uniform(0.25, 0.4) * facing_HW - 0.1 * rim_HW
    shade_HW *= 1 + rng.uniform(0.03, 0.1) * smooth_noise(rng, 20, size)
    # Where two parts meet light is lost: darken the seams softly.
    seams_HW = blur(_edges(labels_HW).astype(np.float32), 1.2)
    shade_HW *= 1 - 0.45 * seams_HW
    colours_PC = np.array([(0.5, 0.5, 0.5)] + [part.colour for part in parts], dtype=np.float32)
    colours_PC = colours_PC * 0.85 + 0.06
    gloss_HW = np.exp(-((across_HW - light[0] * 0.6) ** 2 + (down_HW - light[1] * 0.6) ** 2) / 0.09)
    gloss_HW *= rng.uniform(0.0, 0.45)
    return colours_PC[labels_HW] * shade_HW[:, :, None] + gloss_HW.astype(np.float32)[:, :, None]


def _edges(labels_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another part."""
    edges_HW = np.zeros(labels_HW.shape, dtype=bool)
    edges_HW[:, :-1] |= labels_HW[:, 1:] != labels_HW[:, :-1]
    edges_HW[:-1] |= labels_HW[1:] != labels_HW[:-1]
    return edges_HW


def _shrink(image_HWC: FloatImage, factor: int) -> FloatImage:
    """Average blocks of factor x factor pixels."""
    total = image_HWC[::factor, ::factor].copy()
    for row in range(factor):
        for column in range(factor):
            if row or column:
                total += image_HWC[row::factor, column::factor]
    return total / np.float32(factor * factor)


def _camera(image_HWC: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Vignette, colour temperature, exposure, lens blur and sensor noise."""
    size = image_HWC.shape[0]
    x_1W, y_H1 = grid(size)
    vignette_HW = 1 - rng.uniform(0.1, 0.7) * ((x_1W - 0.5) ** 2 + (y_H1 - 0.5) ** 2)
    warmth = rng.uniform(-0.09, 0.09)
    tone_C = np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32) * rng.uniform(0.9, 1.25)
    toned_HWC = np.clip(image_HWC * vignette_HW[:, :, None] * tone_C, 0, 1)
    lens = Image.fromarray((toned_HWC * 255).astype(np.uint8))
    lens = lens.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    noise_HWC = rng.standard_normal(image_HWC.shape, dtype=np.float32)
    return np.asarray(lens, dtype=np.float32) / 255 + noise_HWC * rng.uniform(0.008, 0.025)


# --- painting ----------------------------------------------------------------------------------


def painting(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Visible brush strokes over an underpainting, a shifted palette, and the weave of canvas."""
    size = IMAGE_SIZE * SOFT_SCALE
    guide_HWC, labels_HW = _underpainting(scene, rng, size)
    canvas = Image.fromarray(guide_HWC)
    draw = ImageDraw.Draw(canvas)
    flow_HW = np.pi * smooth_noise(rng, 4, size) + rng.uniform(0, np.pi)
    # Broad strokes everywhere first, then fine ones where the object is, then its contours.
    _brush(draw, guide_HWC, flow_HW, _scatter(rng, 150, size), 6.0, rng)
    _brush(draw, guide_HWC, flow_HW, _pick(rng, labels_HW > 0, 260), 3.0, rng)
    _brush(draw, guide_HWC, flow_HW, _pick(rng, _edges(labels_HW), 90), 1.5, rng)
    strokes_HWC = np.asarray(canvas.reduce(SOFT_SCALE), dtype=np.float32) / 255
    plan_HWC = np.asarray(Image.fromarray(guide_HWC).reduce(SOFT_SCALE), dtype=np.float32) / 255
    opacity = rng.uniform(0.65, 0.95)
    image_HWC = strokes_HWC * opacity + plan_HWC * (1 - opacity)
    return finish(image_HWC * _canvas_weave(rng, IMAGE_SIZE)[:, :, None])


def _underpainting(
    scene: Scene, rng: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The colours that the strokes will take, and the part that each pixel belongs to."""
    labels_HW = label_map(scene.parts, size)
    _, y_H1 = grid(size)
    top, bottom = (np.array(any_colour(rng)) * 0.6 + rng.uniform(0.1, 0.4) for _ in range(2))
    mix_HW = np.clip(y_H1 + 0.3 * smooth_noise(rng, 4, size), 0, 1)[:, :, None]
    backdrop_HWC = top * (1 - mix_HW) + bottom * mix_HW
    colours_PC = np.array([(0, 0, 0)] + [part.colour for part in scene.parts], dtype=np.float32)
    light_HW = 1.2 - 0.2 * y_H1 + 0.08 * smooth_noise(rng, 6, size)
    object_HWC = colours_PC[labels_HW] * light_HW[:, :, None]
    contour_HW = blur(_edges(labels_HW).astype(np.float32), 0.8)[:, :, None]
    image_HWC = np.where((labels_HW > 0)[:, :, None], object_HWC, backdrop_HWC)
    image_HWC = image_HWC * (1 - 0.6 * contour_HW)
    return (np.clip(_palette(image_HWC, rng), 0, 1) * 255).astype(np.uint8), labels_HW


def _palette(image_HWC: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Pull all colours towards one pigment, as a limited palette does."""
    pigments = [(0.72, 0.52, 0.26), (0.28, 0.40, 0.58), (0.55, 0.36, 0.30), (0.45, 0.52, 0.34)]
    pigment_C = np.array(pigments[int(rng.integers(len(pigments)))])
    share = rng.uniform(0.05, 0.25)
    return image_HWC * (1 - share) + pigment_C * share


def _scatter(rng: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    """Random pixel positions (x, y) over the whole image."""
    return rng.integers(0, size, (count, 2))


def _pick(rng: np.random.Generator, mask_HW: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Random positions (x, y) of set pixels; at least one pixel must be set."""
    rows, columns = np.nonzero(mask_HW)
    picks = rng.integers(0, len(rows), count)
    return np.stack([columns[picks], rows[picks]], axis=1)


def _brush(
    draw: ImageDraw.ImageDraw,
    guide_HWC: NDArray[np.uint8],
    flow_HW: FloatImage,
    spots_N2: NDArray[np.int64],
    width: float,
    rng: np.random.Generator,
) -> None:
    """One stroke per spot in the guide's colour there, along the flow, with a lighter ridge."""
    x_N, y_N = spots_N2[:, 0], spots_N2[:, 1]
    count = len(spots_N2)
    angle_N = flow_HW[y_N, x_N] + rng.normal(0, 0.25, count)
    reach_N = width * rng.uniform(0.8, 1.5, count)
    step_N2 = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1) * reach_N[:, None]
    lines_N4 = np.concatenate([spots_N2 - step_N2, spots_N2 + step_N2], axis=1)
    ridge_N2 = step_N2[:, ::-1] * np.array([-0.3, 0.3])
    ridges_N4 = lines_N4 + np.tile(ridge_N2, 2)
    brightness_N1 = rng.uniform(0.88, 1.12, (count, 1))
    colour_NC = np.clip(guide_HWC[y_N, x_N] * brightness_N1 + rng.normal(0, 5, (count, 3)), 0, 255)
    ridge_NC = np.clip(colour_NC * 1.16 + 8, 0, 255).astype(int).tolist()
    pens = np.maximum(width * rng.uniform(0.6, 1.1, count), 2).astype(int).tolist()
    colours = colour_NC.astype(int).tolist()
    for line, ridge, colour, light, pen in zip(
        lines_N4.tolist(), ridges_N4.tolist(), colours, ridge_NC, pens, strict=True
    ):
        draw.line(line, fill=tuple(colour), width=pen)
        draw.line(ridge, fill=tuple(light), width=1)


def _canvas_weave(rng: np.random.Generator, size: int) -> FloatImage:
    """A fine grid of threads that lightens and darkens the paint."""
    x_1W, y_H1 = grid(size)
    threads = rng.uniform(12, 16)
    weave_HW = np.sin(2 * np.pi * threads * x_1W) + np.sin(2 * np.pi * threads * y_H1)
    coarse_HW = rng.normal(0, 0.02, (size, size))
    return (1 + rng.uniform(0.01, 0.04) * weave_HW + coarse_HW).astype(np.float32)


# --- clip art ----------------------------------------------------------------------------------


def clipart(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Flat saturated colours inside bold outlines, on a plain or simply patterned ground."""
    size = IMAGE_SIZE * LINE_SCALE
    labels_HW = label_map(scene.parts, size)
    vivid = [_vivid(part.colour) for part in scene.parts]
    colours_PC = np.array([(0, 0, 0), *vivid], dtype=np.uint8)
    image_HWC = np.where(
        (labels_HW > 0)[:, :, None], colours_PC[labels_HW], _clipart_ground(rng, size)
    )
    ink_C = np.array([[0, 0, 0], [25, 25, 60], [60, 30, 20]][int(rng.integers(3))], dtype=np.uint8)
    pen = int(rng.integers(4, 8))
    outline_HW = _thicken(_edges(labels_HW), pen)
    image_HWC = np.where(outline_HW[:, :, None], ink_C, image_HWC).astype(np.uint8)
    return Image.fromarray(image_HWC).reduce(LINE_SCALE)


def _vivid(colour: Colour) -> tuple[int, int, int]:
    """Stretch a colour away from grey and round it to a few levels, as clip-art palettes do."""
    grey = sum(colour) / 3
    red, green, blue = (
        int(np.clip(round((grey + (channel - grey) * 1.7 + 0.06) * 5) / 5, 0, 1) * 255)
        for channel in colour
    )
    return red, green, blue


def _clipart_ground(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """White, one pastel, stripes, dots or a big disc."""
    x_1W, y_H1 = grid(size)
    pastel_C = 255 - rng.uniform(10, 110, 3)
    other_C = (
        np.array([255.0, 255.0, 255.0]) if rng.uniform() < 0.6 else 255 - rng.uniform(0, 90, 3)
    )
    kind = int(rng.integers(5))
    period = rng.uniform(0.12, 0.3)
    if kind == 0:
        mask_HW = np.zeros((size, size), dtype=bool)
    elif kind == 1:
        mask_HW = np.ones((size, size), dtype=bool)
    elif kind == 2:
        slope = rng.uniform(-1, 1)
        mask_HW = np.mod(x_1W + slope * y_H1, period) < period / 2
    elif kind == 3:
        near_x, near_y = np.mod(x_1W, period) / period - 0.5, np.mod(y_H1, period) / period - 0.5
        mask_HW = near_x**2 + near_y**2 < 0.07
    else:
        mask_HW = (x_1W - 0.5) ** 2 + (y_H1 - 0.5) ** 2 < rng.uniform(0.14, 0.22)
    return np.where(mask_HW[:, :, None], pastel_C, other_C).astype(np.uint8)


def _thicken(edges_HW: NDArray[np.bool_], pen: int) -> NDArray[np.bool_]:
    """Grow edges to `pen` pixels, along rows and then along columns."""
    before, after = (pen - 1) // 2, pen // 2
    wide_HW = edges_HW.copy()
    for step in range(1, before + 1):
        wide_HW[:, :-step] |= edges_HW[:, step:]
    for step in range(1, after + 1):
        wide_HW[:, step:] |= edges_HW[:, :-step]
    tall_HW = wide_HW.copy()
    for step in range(1, before + 1):
        tall_HW[:-step] |= wide_HW[step:]
    for step in range(1, after + 1):
        tall_HW[step:] |= wide_HW[:-step]
    return tall_HW


# --- sketch ------------------------------------------------------------------------------------


def sketch(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Pencil on paper: wavering outlines drawn twice and hatching for the darker colours."""
    size = IMAGE_SIZE * LINE_SCALE
    paper = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(paper)
    lead = int(rng.integers(0, 90))
    hatches = _hatch_sheets(rng, size, lead)
    hatched = rng.uniform() < 0.8
    wobble = rng.uniform(0.002, 0.007)
    mask = Image.new("L", (size, size), 0)
    mask_draw = ImageDraw.Draw(mask)
    for part in scene.parts:
        outline = to_pixels(part, size)
        darkness = 1 - (0.3 * part.colour[0] + 0.59 * part.colour[1] + 0.11 * part.colour[2])
        sheet = min(int(darkness * 4), len(hatches)) - 1
        draw.polygon(outline, fill=255)
        if hatched and sheet >= 0:
            mask.paste(0, (0, 0, size, size))
            mask_draw.polygon(outline, fill=255)
            paper.paste(hatches[sheet], (0, 0), mask)
        _pencil_outline(draw, part.points_K2 * size, lead, wobble * size, rng)
    grey_HW = np.asarray(paper.reduce(LINE_SCALE), dtype=np.float32) / 255
    return finish(_paper(grey_HW, rng))


def _hatch_sheets(rng: np.random.Generator, size: int, lead: int) -> list[Image.Image]:
    """Sheets of parallel strokes, ever denser; the last one is cross-hatched."""
    x_1W, y_H1 = grid(size)
    angle = rng.uniform(0.3, 1.2) * rng.choice([-1.0, 1.0])
    bend_HW = 0.012 * smooth_noise(rng, 6, size)
    along_HW = x_1W * np.cos(angle) + y_H1 * np.sin(angle) + bend_HW
    across_HW = x_1W * np.cos(angle + 1.3) + y_H1 * np.sin(angle + 1.3) + bend_HW
    tone = min(lead + 60, 170)
    masks = [np.mod(along_HW, period) < 0.011 for period in (0.075, 0.045)]
    masks.append(masks[1] | (np.mod(across_HW, 0.05) < 0.011))
    return [Image.fromarray(np.where(mask, tone, 255).astype(np.uint8)) for mask in masks]


def _pencil_outline(
    draw: ImageDraw.ImageDraw,
    points_K2: FloatArray,
    lead: int,
    wobble: float,
    rng: np.random.Generator,
) -> None:
    """Two passes that never quite coincide."""
    closed_K2 = np.concatenate([points_K2, points_K2[:1]])
    for width in (3, 2):
        shaky_K2 = closed_K2 + rng.normal(0, wobble, closed_K2.shape)
        draw.line(shaky_K2.ravel().tolist(), fill=lead, width=width)


def _paper(grey_HW: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Tint the paper, give it grain, and smudge it a little."""
    size = grey_HW.shape[0]
    tint_C = np.array([1.0, rng.uniform(0.97, 1.0), rng.uniform(0.88, 1.0)], dtype=np.float32)
    tint_C *= rng.uniform(0.86, 1.0)
    grain_HW = 1 + rng.normal(0, 0.025, (size, size)) + 0.04 * smooth_noise(rng, 5, size)
    return (grey_HW * grain_HW)[:, :, None].astype(np.float32) * tint_C


STYLES = {"photo": photo, "painting": painting, "clipart": clipart, "sketch": sketch}
