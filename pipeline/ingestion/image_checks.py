"""What is checked about images while a manifest is written: each by itself, and all together."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from adu.data.images import (
    ALPHA_MODES,
    DEEP_MODES,
    UPRIGHT,
    ImageError,
    open_image,
    orientation,
    to_rgb,
)
from adu.errors import UserError

# What a check's name means and what is done about it, in the order of the report.
CHECKS: dict[str, tuple[str, str]] = {
    "hidden": ("hidden or a system's", "left out"),
    "other_file": ("no image by its name", "left out"),
    "unknown_format": ("image format not read", "left out"),
    "broken_name": ("name not Unicode", "left out"),
    "not_a_file": ("pipe or device", "left out"),
    "link_loop": ("link in a circle", "left out"),
    "empty_folder": ("empty folder", "left out"),
    "class_lacking": ("class that a domain lacks", "left out"),
    "unreadable": ("unreadable", "left out"),
    "truncated": ("truncated", "left out"),
    "zero_byte": ("zero bytes", "left out"),
    "not_an_image": ("not an image", "left out"),
    "decompression_bomb": ("decompression bomb", "left out"),
    "cmyk": ("CMYK", "converted"),
    "16_bit": ("16-bit", "scaled to 8"),
    "palette": ("palette", "converted"),
    "alpha": ("alpha", "put on white"),
    "exif_rotation": ("EXIF rotation", "applied"),
    "frames": ("several frames", "first used"),
    "warned": ("decoder warns", "kept"),
    "same_in_one_cell": ("same image twice in a class", "kept"),
    "same_in_two_classes": ("same image in two classes", "kept"),
    "same_in_two_splits": ("same image in two splits", "kept"),
    "same_in_two_domains": ("same image in two domains", "kept"),
    "similar_in_two_classes": ("similar image in two classes", "kept"),
    "similar_in_two_splits": ("similar image in two splits", "kept"),
    "similar_in_two_domains": ("similar image in two domains", "kept"),
    "few_shots": ("class below the asked shots", "kept"),
}
LEFT_OUT = tuple(name for name, (_, action) in CHECKS.items() if action == "left out")
# An image with one of these is not used quite as it lies there.
FLAGS = ("cmyk", "16_bit", "palette", "alpha", "exif_rotation", "frames")

MAX_EXAMPLES = 20
JPEG_QUALITY = 95

# Perceptual hashes of 64 bits that differ in at most so many bits are of similar images. Their 4
# words of 16 bits then have one in common, which is how pairs are found without comparing all.
SIMILAR_BITS = 3
HASH_WORDS = 4
# Images of one colour, or nearly so, all have hashes alike: they are not compared.
MIN_GREY_SPREAD = 8.0
HASHED_SIDE = 32
# In a group of hashes with a word in common, ordered by hash, each is compared to so many next
# ones. In a million images a group has 20; only in a heap of look-alikes are some pairs missed.
MAX_NEIGHBOURS = 64


@dataclass(frozen=True, slots=True)
class Inspected:
    """What came of one image.

    Attributes:
        data: The encoded image as it is to be stored, None if nobody asked for it.
        problem: Which check it failed, so that it is left out; None if it can be used.
        reason: The problem in one line.
        flags: Checks that it failed and can be used nevertheless.
        phash: Its perceptual hash; None if it has too little structure for one.
        source_sha256: Hash of the bytes as found, which a reduced image no longer has.
        warnings: What the decoder had to say of it.
    """

    width: int
    height: int
    n_bytes: int
    sha256: str
    source_sha256: str
    source_bytes: int
    flags: tuple[str, ...]
    phash: int | None
    problem: str | None = None
    reason: str | None = None
    data: bytes | None = None
    warnings: tuple[str, ...] = ()


def rejected(error: UserError, n_bytes: int) -> Inspected:
    """An image that cannot be used."""
    problem = error.problem if isinstance(error, ImageError) else "unreadable"
    return Inspected(0, 0, 0, "", "", n_bytes, (), None, problem, str(error))


def inspect_image(
    data: bytes, name: str, short_side: int | None = None, keep: bool = False
) -> Inspected:
    """Decodes an image fully and says everything that the manifest and the checks need of it.

    Args:
        data: The encoded image.
        name: What errors call it.
        short_side: A larger image is reduced to this short side and encoded anew.
        keep: Whether the encoded image is wanted.
    """
    with warnings_of_this_image() as told:
        try:
            image = open_image(data, name)
            format_, flags = image.format, image_flags(image)
            rgb = to_rgb(image, name)
        except UserError as error:
            return replace(rejected(error, len(data)), warnings=tuple(told))
    sha256 = source_sha256 = hashlib.sha256(data).hexdigest()
    stored, phash = data, perceptual_hash(rgb)
    if short_side is not None and min(rgb.size) > short_side:
        rgb, stored = reduce_image(rgb, short_side, format_)
        sha256 = hashlib.sha256(stored).hexdigest()
    return Inspected(
        rgb.width,
        rgb.height,
        len(stored),
        sha256,
        source_sha256,
        len(data),
        flags,
        phash,
        data=stored if keep else None,
        warnings=tuple(told),
    )


def image_flags(image: Image.Image) -> tuple[str, ...]:
    """What is unusual about an opened image; must be asked before it is decoded."""
    tiles = getattr(image, "tile", None)  # how the file stores its pixels
    raw_mode = str(tiles[0][3]) if tiles else ""
    found = {
        "cmyk": image.mode == "CMYK",
        "16_bit": image.mode in DEEP_MODES or ";16" in raw_mode,
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in ALPHA_MODES or "transparency" in image.info,
        "exif_rotation": orientation(image) != UPRIGHT,
        "frames": _has_frames(image),
    }
    return tuple(name for name in FLAGS if found[name])


def _has_frames(image: Image.Image) -> bool:
    # What else a camera's MPO holds is the same picture again.
    if image.format == "MPO":
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False  # broken behind its first frame, which is the one that counts


def reduce_image(
    image: Image.Image, short_side: int, format_: str | None
) -> tuple[Image.Image, bytes]:
    """Reduces an image to a short side and encodes it: JPEG as JPEG, anything else as PNG."""
    factor = short_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    reduced = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if format_ in ("JPEG", "MPO"):
        reduced.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        reduced.save(buffer, "PNG")
    return reduced, buffer.getvalue()


def perceptual_hash(image: Image.Image) -> int | None:
    """pHash of an image, 64 bits; None where it is nearly of one colour."""
    grey = image.convert("L")
    factor = max(1, min(grey.size) // (2 * HASHED_SIDE))
    small = grey.reduce(factor).resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.BILINEAR)
    if np.asarray(small).std() < MIN_GREY_SPREAD:
        return None
    bits = imagehash.phash(small).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


_this_thread = threading.local()


@contextmanager
def collected_warnings() -> Iterator[None]:
    """Gives what Pillow warns of to the image that it is about, instead of to the terminal.

    Warnings are a matter of the whole process: enter this once, around all threads that decode.
    """
    logger = logging.getLogger("PIL")
    handler, propagate = _ToThisImage(logging.WARNING), logger.propagate
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        # The limit is ours, and an error: `adu.data.images`.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        shown_before = warnings.showwarning

        def show(message: Any, *others: Any, **more: Any) -> None:
            if not _tell_this_image(str(message)):
                shown_before(message, *others, **more)

        warnings.showwarning = show
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate


@contextmanager
def warnings_of_this_image() -> Iterator[list[str]]:
    """Collects, each once, what Pillow warns of in this thread within `collected_warnings`."""
    _this_thread.told = []
    try:
        yield _this_thread.told
    finally:
        del _this_thread.told


def _tell_this_image(text: str) -> bool:
    told: list[str] | None = getattr(_this_thread, "told", None)
    line = " ".join(text.split())[:200]
    if told is not None and line not in told:
        told.append(line)
    return told is not None


class _ToThisImage(logging.Handler):
    """What Pillow logs is about the image that the thread decodes."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell_this_image(record.getMessage())


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: A key of `CHECKS`.
        count: How many images, pairs or classes.
        examples: Some of them.
    """

    name: str
    count: int
    examples: tuple[str, ...]

    @property
    def card(self) -> dict[str, object]:
        """For the manifest's card."""
        return {"count": self.count, "done": CHECKS[self.name][1], "examples": list(self.examples)}


def check_results(found: Mapping[str, Sequence[str]]) -> list[CheckResult]:
    """Every check, with what it found, in the order of the report."""
    return [
        CheckResult(name, len(found.get(name, ())), tuple(found.get(name, ())[:MAX_EXAMPLES]))
        for name in CHECKS
    ]


def same_images(table: pa.Table) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Finds images that stand in two classes, splits or domains, or twice in one.

    Args:
        table: With image_id, domain, class, split, source_sha256 and phash, ordered by image_id.

    Returns:
        For each of the checks the pairs, and the row numbers of all images concerned. Of copies of
        one image, one pair is given.
    """
    ids = table["image_id"]
    domain, class_, split, hashes = (
        table[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("domain", "class", "split", "source_sha256")
    )
    similar = _similar_pairs(table["phash"].combine_chunks())
    similar = similar[hashes[similar[:, 0]] != hashes[similar[:, 1]]]
    pairs: dict[str, list[str]] = {}
    rows: dict[str, np.ndarray] = {}
    for what, column in (("classes", class_), ("splits", split), ("domains", domain)):
        same, copies = _copies_apart(hashes, column)
        apart = similar[column[similar[:, 0]] != column[similar[:, 1]]]
        for kind, found, its_rows in (("same", same, copies), ("similar", apart, np.unique(apart))):
            check = f"{kind}_in_two_{what}"
            pairs[check] = [f"{ids[int(a)]} = {ids[int(b)]}" for a, b in found]
            rows[check] = its_rows
    # The number of a row is all that tells copies in one cell and split apart.
    cells = (domain * (class_.max() + 1) + class_) * (split.max() + 1) + split
    in_cell = np.unique(hashes * (cells.max() + 1) + cells, return_inverse=True)[1]
    same, copies = _copies_apart(in_cell, np.arange(len(ids)))
    pairs["same_in_one_cell"] = [f"{ids[int(a)]} = {ids[int(b)]}" for a, b in same]
    rows["same_in_one_cell"] = copies
    return pairs, rows


def _copies_apart(values: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds equal values whose rows differ in a column.

    Returns:
        For each such value two rows that differ, and all rows with such values.
    """
    order = np.lexsort((column, values))
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    first, last = order[starts], order[np.append(starts[1:], len(order)) - 1]
    apart = column[first] != column[last]
    pairs = np.sort(np.stack([first[apart], last[apart]], 1), 1)
    return pairs[np.argsort(pairs[:, 0])], np.flatnonzero(np.isin(values, values[first[apart]]))


def _similar_pairs(phash: pa.Array) -> np.ndarray:
    """Pairs of rows whose hashes differ in at most `SIMILAR_BITS` bits, each once, ordered."""
    known = np.flatnonzero(np.asarray(phash.is_valid()))
    hashes = phash.drop_null().to_numpy().astype(np.uint64)
    pairs = [np.empty((0, 2), np.int64)]
    for word in range(HASH_WORDS):
        shared = (hashes >> np.uint64(16 * word)) & np.uint64(0xFFFF)
        order = np.lexsort((hashes, shared))
        # Each is compared to the next ones in its group, one distance after another.
        for step in range(1, MAX_NEIGHBOURS + 1):
            a, b = order[:-step], order[step:]
            together = shared[a] == shared[b]
            if not together.any():
                break
            a, b = a[together], b[together]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= SIMILAR_BITS
            pairs.append(np.stack([known[a[close]], known[b[close]]], 1))
    return np.unique(np.sort(np.concatenate(pairs), 1), axis=0)
