"""The demo's images and manifest: drawn and ingested on first use, then kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import adu.demo
from adu import storage
from adu.demo.dataset import write_images
from adu.manifest import CARD_FILE, Manifest, load_manifest
from pipeline.ingest import IngestConfig, ingest

IMAGES_PER_CELL = 40
SEED = 0


def prepare_demo(folder: Path) -> Manifest:
    """Gives the demo's manifest, which is written under a folder if it is not there yet.

    Raises:
        UserError: If the folder cannot be written.
    """
    # Drawn by other code, they would be other images.
    place = folder / f"demo-{IMAGES_PER_CELL}-{SEED}-{_fingerprint()}"
    manifest, images = str(place / "manifest"), place / "images"
    # Its card is written last: a manifest that has one is whole.
    if storage.exists(storage.join(manifest, CARD_FILE)):
        return load_manifest(manifest)
    storage.check_reachable(str(place), write=True)
    write_images(images, IMAGES_PER_CELL, SEED)
    return ingest(
        IngestConfig(source=str(images), out=manifest, name="demo", synthetic=True, seed=SEED)
    )


def _fingerprint() -> str:
    """Short hash of the code that draws."""
    digest = hashlib.sha256()
    for file in sorted(Path(adu.demo.__file__).parent.glob("*.py")):
        if file.stem in ("dataset", "render", "shapes", "styles"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
