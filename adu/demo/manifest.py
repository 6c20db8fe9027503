"""The demo's manifest for whoever uses the library by itself: drawn on first use, then kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from adu import storage
from adu.data.listing import image_row, set_aside
from adu.data.manifest import CARD_FILE, Manifest, load_manifest
from adu.data.writing import write_manifest
from adu.demo.dataset import write_images

IMAGES_PER_CELL = 40
SEED = 0
TEST_SHARE = 0.5

# The modules that draw.
DRAWN_BY = ("dataset", "render", "shapes", "styles")


def demo_manifest(folder: Path | None = None) -> Manifest:
    """Gives the demo's manifest, which is written if it is not there yet.

    It holds the same images in the same splits as the one that the commands write.

    Args:
        folder: Where it is; None for the user's own in the folder for temporary files.

    Raises:
        UserError: If the folder cannot be written.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"adu-demo-{os.getuid()}"
    # Drawn by other code, they would be other images.
    place = folder / f"{IMAGES_PER_CELL}-{SEED}-{drawing_fingerprint()}"
    url = str(place / "manifest")
    # Its card is written last: a manifest that has one is whole.
    if storage.exists(storage.join(url, CARD_FILE)):
        return load_manifest(url)
    storage.check_reachable(str(place), write=True)
    images = place / "images"
    write_images(images, IMAGES_PER_CELL, SEED)
    rows = [
        row for cell in sorted(images.glob("*/*")) for row in _rows(sorted(cell.iterdir()), images)
    ]
    return write_manifest(url, rows, name="demo", source=str(images), synthetic=True)


def drawing_fingerprint() -> str:
    """Short hash of the code that draws."""
    digest = hashlib.sha256()
    for name in DRAWN_BY:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:8]


def _rows(files: list[Path], images: Path) -> list[dict[str, Any]]:
    """The rows of a domain's and class' images, as ingest makes them."""
    names = [file.relative_to(images).as_posix() for file in files]
    test = set_aside(names, TEST_SHARE, SEED)
    return [
        image_row(
            file.read_bytes(),
            image_id=name,
            uri=str(file),
            domain=file.parent.parent.name,
            class_=file.parent.name,
            split="test" if name in test else "train",
        )
        for file, name in zip(files, names, strict=True)
    ]
