"""What is checked of each image by itself while a manifest is written."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import imagehash
import numpy as np
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
from pipeline.ingestion.checks import FLAGS

JPEG_QUALITY = 95

# Images of one colour, or nearly so, all have hashes alike: they are not compared.
MIN_GREY_SPREAD = 8.0
HASHED_SIDE = 32


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
        view: What a model sees of it, None if nobody asked for it.
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
    view: np.ndarray | None = None


def rejected(error: UserError, n_bytes: int) -> Inspected:
    """An image that cannot be used."""
    problem = error.problem if isinstance(error, ImageError) else "unreadable"
    return Inspected(0, 0, 0, "", "", n_bytes, (), None, problem, str(error))


def inspect_image(
    data: bytes,
    name: str,
    short_side: int | None = None,
    keep: bool = False,
    view: Callable[[Image.Image], np.ndarray] | None = None,
) -> Inspected:
    """Decodes an image fully and says everything that the manifest and the checks need of it.

    Args:
        data: The encoded image.
        name: What errors call it.
        short_side: A larger image is reduced to this short side and encoded anew.
        keep: Whether the encoded image is wanted.
        view: What a model sees of an image, if that is wanted.
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
        view=None if view is None else view(rgb),
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
