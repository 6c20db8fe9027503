"""Pictures within a page: reduced as far as it takes for all of them to fit."""

from __future__ import annotations

import base64
import io

from PIL import Image

# Of a page, in bytes; base64 takes four for three.
PAGE_BYTES = 18_000_000
OF_PICTURES = 3 / 4

# Widths in pixels and qualities to try, the best first.
STEPS = ((1400, 85), (1000, 75), (800, 60), (640, 45), (480, 35), (320, 25))


def embedded(png: bytes, n_pictures: int) -> str:
    """A picture as a data URL.

    Args:
        png: The picture.
        n_pictures: How many the page has: each gets an equal part of its size.
    """
    limit = int(PAGE_BYTES * OF_PICTURES / max(n_pictures, 1))
    if len(png) <= limit:
        return _data_url("png", png)
    data = b""
    with Image.open(io.BytesIO(png)) as image:
        for width, quality in STEPS:
            data = _webp(image.convert("RGB"), width, quality)
            if len(data) <= limit:
                break
    return _data_url("webp", data)


def _webp(image: Image.Image, width: int, quality: int) -> bytes:
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
