"""Outlines of the demo's object classes, as coloured polygons in a unit square.

Every shape is drawn around the origin inside [-1, 1] x [-1, 1], x to the right and y down. A shape
knows nothing of the domain: `styles.py` decides what a polygon looks like in a photo or a sketch.

Shape suffixes: K = corners of one polygon, 2 = (x, y).
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Colour = tuple[float, float, float]

BLACK: Colour = (0.10, 0.10, 0.12)
WHITE: Colour = (0.94, 0.94, 0.92)
GLASS: Colour = (0.62, 0.78, 0.86)


@dataclass(frozen=True)
class Part:
    """One filled polygon and its natural colour (RGB, each 0 to 1)."""

    points_K2: FloatArray
    colour: Colour


def ellipse(
    x: float,
    y: float,
    rx: float,
    ry: float,
    start: float = 0.0,
    end: float = 2 * np.pi,
    corners: int = 20,
) -> FloatArray:
    """Corners of an ellipse, or of the arc between two angles (radians)."""
    angles_K = np.linspace(start, end, corners)
    return np.stack([x + rx * np.cos(angles_K), y + ry * np.sin(angles_K)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> FloatArray:
    """Corners of an axis-parallel rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def ribbon(points_K2: FloatArray, width: float) -> FloatArray:
    """The polygon covered by a pen of the given width drawn along an open line."""
    direction_K2 = np.gradient(points_K2, axis=0)
    length_K1 = np.linalg.norm(direction_K2, axis=1, keepdims=True) + 1e-9
    normal_K2 = direction_K2[:, ::-1] * np.array([-1.0, 1.0]) / length_K1
    side_K2 = normal_K2 * width / 2
    return np.concatenate([points_K2 + side_K2, (points_K2 - side_K2)[::-1]])


def blob(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float, bumps: int, depth: float
) -> FloatArray:
    """A closed wavy outline with `bumps` rounded bulges."""
    angles_K = np.linspace(0, 2 * np.pi, 6 * bumps, endpoint=False)
    phase = rng.uniform(0, 2 * np.pi)
    wave_K = np.abs(np.sin(bumps * angles_K / 2 + phase))
    radius_K = 1 - depth + depth * wave_K + rng.normal(0, depth / 4, len(angles_K))
    points_K2 = np.stack([np.cos(angles_K) * rx, np.sin(angles_K) * ry], axis=1)
    return points_K2 * radius_K[:, None] + np.array([x, y])


def any_colour(rng: np.random.Generator, hue: float | None = None) -> Colour:
    """A fairly saturated colour; around `hue` (0 to 1) where one is given."""
    centre = rng.uniform() if hue is None else hue + rng.normal(0, 0.03)
    return colorsys.hsv_to_rgb(centre % 1.0, rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.95))


def tint(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    red, green, blue = (min(1.0, channel * factor) for channel in colour)
    return red, green, blue


def draw_boat(rng: np.random.Generator) -> list[Part]:
    """A sailing boat, or a steamer with a cabin and a funnel."""
    hull = any_colour(rng)
    deck = rng.uniform(0.25, 0.4)
    keel = deck + rng.uniform(0.3, 0.45)
    bow = rng.uniform(0.8, 0.98)
    stern = rng.uniform(0.65, 0.9)
    hull_points = np.array(
        [[-stern, deck], [bow, deck - 0.06], [bow - 0.3, keel], [-stern + 0.2, keel]]
    )
    parts = [Part(hull_points, hull)]
    stripe = np.array(
        [[-stern + 0.03, deck + 0.1], [bow - 0.1, deck + 0.06], [bow - 0.15, deck + 0.15]]
    )
    parts.append(Part(np.vstack([stripe, [[-stern + 0.07, deck + 0.18]]]), WHITE))
    if rng.uniform() < 0.3:
        return _steamer_deck(rng, deck) + parts
    return _sails(rng, deck) + parts


def _steamer_deck(rng: np.random.Generator, deck: float) -> list[Part]:
    """The cabin, portholes and funnel of a steamer."""
    funnel_x = rng.uniform(-0.2, 0.1)
    top = deck - rng.uniform(0.3, 0.4)
    funnel = box(funnel_x, top - 0.55, funnel_x + 0.26, top)
    band = box(funnel_x, top - 0.42, funnel_x + 0.26, top - 0.28)
    parts = [Part(funnel, any_colour(rng, 0.02)), Part(band, BLACK)]
    parts.append(Part(box(-0.5, top, 0.45, deck + 0.02), WHITE))
    for x in (-0.3, -0.02, 0.26):
        parts.append(Part(ellipse(x, (top + deck) / 2, 0.08, 0.08, corners=10), GLASS))
    return parts


def _sails(rng: np.random.Generator, deck: float) -> list[Part]:
    """A mast with a main sail, most often a fore sail, and sometimes a pennant."""
    mast_x = rng.uniform(-0.15, 0.12)
    foot = deck - rng.uniform(0.08, 0.16)
    cloth = WHITE if rng.uniform() < 0.5 else any_colour(rng)
    parts = [Part(box(mast_x - 0.035, -0.98, mast_x + 0.035, deck + 0.02), (0.42, 0.28, 0.16))]
    belly = rng.uniform(0.0, 0.12)
    main = np.array([[mast_x + 0.05, -0.9], [mast_x + 0.5 + belly, -0.3], [mast_x + 0.78, foot]])
    parts.append(Part(np.vstack([main, [[mast_x + 0.05, foot]]]), cloth))
    if rng.uniform() < 0.75:
        fore = [[mast_x - 0.06, -0.75], [mast_x - 0.06, foot], [mast_x - 0.6, foot]]
        parts.append(Part(np.array(fore), tint(cloth, 0.85)))
    if rng.uniform() < 0.4:
        flag = [[mast_x, -0.98], [mast_x - 0.24, -0.92], [mast_x, -0.84]]
        parts.append(Part(np.array(flag), any_colour(rng)))
    return parts


def draw_car(rng: np.random.Generator) -> list[Part]:
    """A car from the side: saloon, hatchback or van, by its cabin's proportions."""
    paint = any_colour(rng)
    waist = rng.uniform(-0.12, 0.0)
    roof = waist - rng.uniform(0.32, 0.45)
    back = rng.uniform(-0.85, -0.45)
    front = rng.uniform(0.2, 0.5)
    rake = rng.uniform(0.12, 0.3)
    sill = 0.38
    cabin = [[back, waist], [back + rake * 0.7, roof], [front - rake, roof], [front, waist]]
    body = [
        [-0.95, waist + 0.06], [-0.85, waist - 0.02], [0.55, waist], [0.9, waist + 0.1],
        [0.97, waist + 0.2], [0.95, sill], [-0.96, sill],
    ]  # fmt: skip
    parts = [Part(np.array(cabin), paint), Part(np.array(body), paint)]
    parts += _car_windows(rng, waist, roof, back, front, rake)
    parts.append(Part(ellipse(0.9, waist + 0.2, 0.07, 0.07, corners=10), (0.98, 0.93, 0.6)))
    parts.append(Part(box(-0.97, waist + 0.12, -0.88, waist + 0.24), (0.8, 0.15, 0.12)))
    radius = rng.uniform(0.2, 0.27)
    for x in (rng.uniform(-0.62, -0.5), rng.uniform(0.48, 0.6)):
        parts.append(Part(ellipse(x, sill, radius, radius), BLACK))
        parts.append(Part(ellipse(x, sill, radius / 2, radius / 2, corners=12), (0.7, 0.7, 0.72)))
    return parts


def _car_windows(
    rng: np.random.Generator, waist: float, roof: float, back: float, front: float, rake: float
) -> list[Part]:
    """Two panes with a pillar between them."""
    top, bottom = roof + 0.07, waist - 0.02
    pillar = (back + front) / 2 + rng.uniform(-0.08, 0.08)
    rear = [[back + 0.12, bottom], [back + rake * 0.7 + 0.04, top], [pillar - 0.03, top]]
    rear.append([pillar - 0.03, bottom])
    fore = [[pillar + 0.03, bottom], [pillar + 0.03, top], [front - rake - 0.02, top]]
    fore.append([front - 0.1, bottom])
    return [Part(np.array(rear), GLASS), Part(np.array(fore), GLASS)]


def draw_cup(rng: np.random.Generator) -> list[Part]:
    """A mug or a tea cup with a handle, seen slightly from above; sometimes a saucer."""
    glaze = WHITE if rng.uniform() < 0.25 else any_colour(rng)
    top, bottom = rng.uniform(-0.7, -0.5), rng.uniform(0.55, 0.75)
    rim, foot = rng.uniform(0.52, 0.66), rng.uniform(0.36, 0.55)
    tilt = rng.uniform(0.1, 0.2)
    is_tea_cup = rng.uniform() < 0.35
    if is_tea_cup:
        top, foot, rim = top + 0.3, foot * 0.7, rim + 0.1
    handle = ellipse(rim * 0.85, (top + bottom) / 2 - 0.05, 0.34, (bottom - top) * 0.3, -1.6, 1.7)
    parts = []
    if rng.uniform() < (0.8 if is_tea_cup else 0.25):
        parts.append(Part(ellipse(0, bottom, 0.95, 0.2), tint(glaze, 0.9)))
        parts.append(Part(ellipse(0, bottom, 0.6, 0.11), tint(glaze, 0.75)))
    parts.append(Part(ribbon(handle, rng.uniform(0.12, 0.18)), tint(glaze, 0.9)))
    bulge = 0.5 if is_tea_cup else rng.uniform(0.0, 0.12)
    middle = (rim * (1 + bulge) + foot) / 2 + 0.02
    left = [[-rim, top], [-middle, (top + bottom) / 2 + 0.1], [-foot, bottom]]
    base = ellipse(0, bottom, foot, tilt * 0.7, np.pi, 0.0, corners=9)
    right = [[middle, (top + bottom) / 2 + 0.1], [rim, top]]
    parts.append(Part(np.vstack([left, base, right]), glaze))
    if rng.uniform() < 0.5:
        parts += _cup_motif(rng, top, bottom, rim)
    parts.append(Part(ellipse(0, top, rim, tilt), tint(glaze, 1.12)))
    coffee = (0.33, 0.2, 0.11) if rng.uniform() < 0.6 else (0.75, 0.52, 0.22)
    parts.append(Part(ellipse(0, top + 0.025, rim * 0.86, tilt * 0.72), coffee))
    return parts


def _cup_motif(rng: np.random.Generator, top: float, bottom: float, rim: float) -> list[Part]:
    """A dot or a band printed on the cup."""
    y = (top + bottom) / 2 + 0.1
    if rng.uniform() < 0.5:
        return [Part(ellipse(0, y, 0.17, 0.17, corners=14), any_colour(rng))]
    upper = ellipse(0, y - 0.08, rim * 0.88, 0.1, np.pi, 0.0, corners=9)
    lower = ellipse(0, y + 0.1, rim * 0.84, 0.1, 0.0, np.pi, corners=9)
    return [Part(np.vstack([upper, lower]), any_colour(rng))]


def draw_fish(rng: np.random.Generator) -> list[Part]:
    """A fish from the side, with fins, a tail, an eye and most often stripes."""
    skin = any_colour(rng)
    height = rng.uniform(0.3, 0.55)
    fin = tint(skin, 0.75) if rng.uniform() < 0.6 else any_colour(rng)
    spread = rng.uniform(0.35, 0.55)
    tail = [[-0.42, 0.0], [-0.98, -spread], [rng.uniform(-0.85, -0.7), 0.0], [-0.95, spread]]
    dorsal = [[-0.25, -height * 0.7], [-0.1, -height - rng.uniform(0.15, 0.35)]]
    dorsal += [[0.35, -height * 0.85], [0.35, -height * 0.5]]
    belly = [[0.0, height * 0.7], [-0.18, height + 0.25], [0.25, height * 0.7]]
    parts = [Part(np.array(points), fin) for points in (tail, dorsal, belly)]
    x_K = np.linspace(-0.6, 0.9, 16)
    profile_K = height * np.sin(np.pi * ((x_K + 0.6) / 1.5) ** 0.8) ** 0.75
    outline = np.concatenate(
        [np.stack([x_K, -profile_K], axis=1), np.stack([x_K, profile_K], axis=1)[::-1]]
    )
    parts.append(Part(outline, skin))
    if rng.uniform() < 0.65:
        stripe = WHITE if rng.uniform() < 0.5 else tint(skin, 0.55)
        for x in np.linspace(-0.3, 0.25, int(rng.integers(2, 4))):
            reach = 0.75 * float(np.interp(x, x_K, profile_K))
            band = ellipse(x, 0, 0.055, reach, corners=12)
            parts.append(Part(band, stripe))
    gill = ellipse(0.42, 0, 0.1, height * 0.55, -1.3, 1.3, corners=8)
    parts.append(Part(ribbon(gill, 0.045), tint(skin, 0.5)))
    parts.append(Part(ellipse(0.62, -height * 0.25, 0.11, 0.11, corners=12), WHITE))
    parts.append(Part(ellipse(0.64, -height * 0.25, 0.06, 0.06, corners=10), BLACK))
    return parts


def draw_flower(rng: np.random.Generator) -> list[Part]:
    """A flower on a stem with leaves: a daisy-like one, or a tulip."""
    green = any_colour(rng, 0.3)
    head_y = rng.uniform(-0.5, -0.35)
    lean = rng.uniform(-0.25, 0.25)
    y_K = np.linspace(head_y, 0.98, 7)
    stem = np.stack([lean * np.sin(np.linspace(0, np.pi, 7)), y_K], axis=1)
    parts = [Part(ribbon(stem, rng.uniform(0.07, 0.12)), green)]
    sides = [(-1, 0.55), (1, 0.4)] if rng.uniform() < 0.8 else [(1, 0.5)]
    for side, y in sides:
        parts.append(Part(_leaf(side, y + rng.uniform(-0.1, 0.1)), tint(green, 0.85)))
    if rng.uniform() < 0.25:
        return parts + _tulip(rng, head_y)
    return parts + _daisy(rng, head_y)


def _leaf(side: int, y: float) -> FloatArray:
    """A pointed leaf that leaves the stem at height y."""
    points = [[0.0, y + 0.12], [0.2, y - 0.12], [0.55, y - 0.22], [0.36, y + 0.06]]
    return np.array(points) * np.array([side, 1.0])


def _daisy(rng: np.random.Generator, y: float) -> list[Part]:
    """Petals around a disc."""
    petal = WHITE if rng.uniform() < 0.2 else any_colour(rng)
    count = int(rng.integers(5, 10))
    length = rng.uniform(0.26, 0.32)
    breadth = min(0.2, 1.25 / count)
    shape = ellipse(length, 0, length * 0.85, breadth, corners=12)
    parts = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 1):
        cos, sin = np.cos(angle), np.sin(angle)
        turned = shape @ np.array([[cos, sin], [-sin, cos]]) + np.array([0.0, y])
        parts.append(Part(turned, tint(petal, rng.uniform(0.85, 1.1))))
    disc = rng.uniform(0.14, 0.22)
    centre = any_colour(rng, 0.13) if rng.uniform() < 0.7 else (0.35, 0.2, 0.1)
    parts.append(Part(ellipse(0, y, disc, disc, corners=14), centre))
    return parts


def _tulip(rng: np.random.Generator, y: float) -> list[Part]:
    """Three overlapping upright petals."""
    petal = any_colour(rng)
    outer = [[-0.42, y - 0.42], [-0.1, y - 0.15], [0.02, y + 0.3], [-0.25, y + 0.22]]
    outer.append([-0.43, y - 0.02])
    left = np.array(outer)
    right = left * np.array([-1.0, 1.0])
    middle = np.array([[0.0, y - 0.5], [0.24, y - 0.12], [0.14, y + 0.24], [-0.14, y + 0.24]])
    middle = np.vstack([middle, [[-0.24, y - 0.12]]])
    return [Part(left, petal), Part(right, petal), Part(middle, tint(petal, 1.2))]


def draw_house(rng: np.random.Generator) -> list[Part]:
    """A house with a pitched roof, a door, windows and most often a chimney."""
    wall = any_colour(rng) if rng.uniform() < 0.6 else (0.88, 0.84, 0.74)
    roof = any_colour(rng, rng.choice([0.02, 0.07, 0.6]))
    half = rng.uniform(0.6, 0.8)
    eaves = rng.uniform(-0.2, 0.05)
    ridge = rng.uniform(-0.95, -0.7)
    overhang = rng.uniform(0.08, 0.18)
    parts = []
    if rng.uniform() < 0.7:
        x = rng.uniform(0.25, 0.4)
        parts.append(Part(box(x, ridge - 0.02, x + 0.2, eaves), (0.55, 0.3, 0.24)))
    parts.append(Part(box(-half, eaves - 0.02, half, 0.85), wall))
    flat = rng.choice([0.0, rng.uniform(0.2, 0.5)])
    edge = half + overhang
    gable = [[-edge, eaves], [-flat, ridge], [flat, ridge], [edge, eaves]]
    parts.append(Part(np.array(gable), roof))
    door_x = rng.uniform(-0.25, 0.25)
    door = box(door_x - 0.14, 0.36, door_x + 0.14, 0.85)
    parts.append(Part(door, any_colour(rng)))
    size = rng.uniform(0.11, 0.15)
    for x in (-half * 0.62, half * 0.62):
        if abs(x - door_x) < 0.14 + size:
            continue
        parts += _window(x, rng.uniform(0.25, 0.4), size)
    if rng.uniform() < 0.5 and eaves - ridge > 0.6:
        parts.append(Part(ellipse(0, (eaves + ridge) / 2 + 0.1, 0.12, 0.12), GLASS))
    return parts


def _window(x: float, y: float, size: float) -> list[Part]:
    """A framed window with a cross bar."""
    frame = box(x - size, y - size, x + size, y + size)
    pane = box(x - size * 0.75, y - size * 0.75, x + size * 0.75, y + size * 0.75)
    bar = box(x - 0.02, y - size, x + 0.02, y + size)
    return [Part(frame, WHITE), Part(pane, GLASS), Part(bar, WHITE)]


def draw_tree(rng: np.random.Generator) -> list[Part]:
    """A broad-leaved tree, or a conifer of stacked triangles."""
    hue = rng.choice([0.3, 0.27, 0.36, 0.1, 0.03], p=[0.3, 0.25, 0.2, 0.15, 0.1])
    leaves = any_colour(rng, hue)
    bark = (0.4 + rng.uniform(-0.1, 0.1), 0.27, 0.16)
    width = rng.uniform(0.09, 0.16)
    trunk = np.array([[-width * 0.7, -0.2], [width * 0.7, -0.2], [width * 1.3, 0.97]])
    parts = [Part(np.vstack([trunk, [[-width * 1.3, 0.97]]]), bark)]
    if rng.uniform() < 0.35:
        return parts + _conifer(rng, leaves)
    if rng.uniform() < 0.5:
        branch = np.array([[0.0, 0.35], [0.15, 0.2], [0.35, 0.0]]) * rng.choice([-1.0, 1.0])
        branch[:, 1] = np.abs(branch[:, 1])
        parts.append(Part(ribbon(branch, 0.09), bark))
    rx, ry = rng.uniform(0.5, 0.8), rng.uniform(0.42, 0.6)
    y = rng.uniform(-0.42, -0.3)
    bumps = int(rng.integers(6, 11))
    parts.append(Part(blob(rng, 0, y, rx, ry, bumps, rng.uniform(0.1, 0.22)), leaves))
    for _ in range(int(rng.integers(1, 4))):
        x, dy = rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.2)
        clump = blob(rng, x, y + dy, rx * 0.38, ry * 0.36, 5, 0.2)
        parts.append(Part(clump, tint(leaves, rng.uniform(0.8, 1.2))))
    return parts


def _conifer(rng: np.random.Generator, leaves: Colour) -> list[Part]:
    """Stacked triangles, the widest at the bottom."""
    tiers = int(rng.integers(2, 5))
    parts = []
    bottoms = np.linspace(0.55, -0.35, tiers)
    for tier, bottom in enumerate(bottoms):
        half = 0.68 * (1 - 0.55 * tier / tiers) * rng.uniform(0.9, 1.05)
        top = -0.98 if tier == tiers - 1 else bottom - 0.75
        points = np.array([[0.0, max(top, -0.98)], [half, bottom], [0.0, bottom + 0.08]])
        points = np.vstack([points, [[-half, bottom]]])
        parts.append(Part(points, tint(leaves, 0.85 + 0.12 * tier)))
    return parts


def draw_umbrella(rng: np.random.Generator) -> list[Part]:
    """An open umbrella from the side: scalloped canopy, shaft and hooked handle."""
    cloth = any_colour(rng)
    other = rng.choice(3)
    second = (tint(cloth, 0.75), WHITE, any_colour(rng))[int(other)]
    top, rim = -0.85, rng.uniform(-0.05, 0.1)
    half = rng.uniform(0.8, 0.98)
    shaft_width = rng.uniform(0.06, 0.09)
    hook_x = rng.uniform(0.11, 0.16)
    hook = ellipse(hook_x, 0.78, hook_x, 0.17, np.pi, -0.3, corners=9)
    hook = hook if rng.uniform() < 0.5 else hook * np.array([-1.0, 1.0])
    wood = (0.35, 0.22, 0.14) if rng.uniform() < 0.5 else (0.2, 0.2, 0.23)
    shaft = np.vstack([[[0.0, -0.98], [0.0, 0.5]], hook])
    parts = [Part(ribbon(shaft, shaft_width), wood)]
    panels = int(rng.integers(3, 7))
    edges = half * np.sin(np.linspace(-np.pi / 2, np.pi / 2, panels + 1))
    for index in range(panels):
        panel = _panel(edges[index], edges[index + 1], half, top, rim)
        parts.append(Part(panel, cloth if index % 2 == 0 else second))
    return parts


def _panel(left: float, right: float, half: float, top: float, rim: float) -> FloatArray:
    """One panel between two ribs; each rib is a quarter ellipse from the tip to the rim."""
    angles_K = np.linspace(0, np.pi / 2, 7)
    height_K = rim + (top - rim) * np.cos(angles_K)
    left_rib = np.stack([left * np.sin(angles_K), height_K], axis=1)
    right_rib = np.stack([right * np.sin(angles_K), height_K], axis=1)[::-1]
    middle, reach = (left + right) / 2, (right - left) / 2
    scallop = ellipse(middle, rim, reach, -min(0.13, 0.5 * reach), np.pi, 0.0, corners=6)
    return np.vstack([left_rib, scallop, right_rib])


DRAWERS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "boat": draw_boat,
    "car": draw_car,
    "cup": draw_cup,
    "fish": draw_fish,
    "flower": draw_flower,
    "house": draw_house,
    "tree": draw_tree,
    "umbrella": draw_umbrella,
}
