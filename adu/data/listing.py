"""Rows of a manifest, out of images: what ingest, the demo and the library have in common.

What a row says of an image is the same whoever writes it, and so is which images are set aside for
testing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from adu.data.images import open_image


def plain_name(text: str) -> str:
    """A name in lower case with underscores: ``Real World`` is ``real_world``."""
    plain = unicodedata.normalize("NFC", re.sub(r"[\s_]+", "_", text.strip().lower()))
    return plain.strip("_") or "_"


def set_aside(image_ids: Iterable[str], share: float, seed: int) -> set[str]:
    """The images of a domain and class that are for testing, where nothing else says which.

    Which those are depends on the seed and the names alone, so an image that turns out to be
    broken, or is mended, moves no other one from a split to another.
    """
    ordered = sorted(image_ids, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return set(ordered[: round(len(ordered) * share)])


def image_row(
    data: bytes, *, image_id: str, uri: str, domain: str, class_: str, split: str
) -> dict[str, Any]:
    """An image's row, with what its bytes say; its pixels are not decoded.

    Raises:
        ImageError: If it is no image.
    """
    image = open_image(data, image_id)
    return {
        "image_id": image_id,
        "uri": uri,
        "domain": domain,
        "class": class_,
        "split": split,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
