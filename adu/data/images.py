"""Encoded images and what they become: upright, 8-bit RGB.

Ingest and training decode through here alike, so that an image that was accepted is seen in
training as it was checked.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from adu.errors import UserError

Problem = Literal["zero_byte", "not_an_image", "truncated", "decompression_bomb", "unreadable"]

# About 9,500 x 9,500, Pillow's own threshold. Pillow only warns up to twice of it; here it is the
# limit.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of broken metadata, mostly, and without the image's name. What cannot be used is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow would hand what looks like PostScript to Ghostscript, a program, and try two dozen formats
# of no image set besides. JPEG is MPO's, too: what cameras write.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000"),
    *("PPM", "TGA", "PCX", "DDS", "ICO", "QOI", "SGI"),
)

UPRIGHT = 1
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# One channel with more than 8 bits: Pillow would clip it to 255 instead of scaling it.
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


class ImageError(UserError):
    """An image that cannot be used; ``problem`` says of which kind."""

    def __init__(self, message: str, problem: Problem) -> None:
        super().__init__(message)
        self.problem = problem


def cores() -> int:
    """Cores that this process may use, of which decoding takes all."""
    # Not on macOS.
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decodes an image fully: upright, in 8-bit RGB, transparent parts on white.

    Raises:
        ImageError: Naming the image, if it is empty, truncated, too large or no image.
    """
    return to_rgb(open_image(data, name), name)


def open_image(data: bytes, name: str) -> Image.Image:
    """Reads the header of an image; its pixels are decoded by `to_rgb`.

    Raises:
        ImageError: Naming the image, if it is empty, too large or no image.
    """
    if not data:
        raise ImageError(f"image {name}: is empty", "zero_byte")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise _explained(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"image {name}: has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} "
            "(decompression bomb?)",
            "decompression_bomb",
        )
    return image


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decodes an opened image: upright, in 8-bit RGB, transparent parts on white.

    Raises:
        ImageError: Naming the image, if it is truncated or broken.
    """
    try:
        image.load()
        if orientation(image) != UPRIGHT:
            image = ImageOps.exif_transpose(image)
        if image.mode in DEEP_MODES:
            image = _to_8_bits(image)
        if image.mode in ALPHA_MODES or "transparency" in image.info:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        raise _explained(name, error) from error


def orientation(image: Image.Image) -> int:
    """The orientation that an image's EXIF data asks for; `UPRIGHT` where it has none."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:
        return UPRIGHT  # broken EXIF data says nothing, and the pixels may be fine
    return value if value in range(1, 9) else UPRIGHT


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits. Integers and floats of 32 bits go by their largest value."""
    # In single precision and in place: the largest images would take gigabytes otherwise.
    levels = np.array(image, np.float32)
    if image.mode == "F" and levels.max() <= 1:
        levels *= 255
    elif image.mode.startswith("I;16") or levels.max() > 255:
        levels *= 255 / 65535
    np.rint(levels, out=levels)
    return Image.fromarray(levels.clip(0, 255, out=levels).astype(np.uint8))


def _explained(name: str, error: Exception) -> ImageError:
    """What is wrong with an image. Pillow's decoders raise whatever broken bytes lead them to."""
    if isinstance(error, MemoryError):
        raise error  # says nothing of the image
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    lower = reason.lower()
    problem: Problem = "unreadable"
    if isinstance(error, UnidentifiedImageError):
        # Its text holds an address in memory, which tells nobody anything.
        problem, reason = "not_an_image", "not an image, or of a format that is not read here"
    elif isinstance(error, Image.DecompressionBombError) or "too large" in lower:
        problem = "decompression_bomb"
    elif any(word in lower for word in ("truncated", "unexpected end", "end of file", "eof")):
        problem = "truncated"
    return ImageError(f"image {name}: cannot be decoded ({reason})", problem)
