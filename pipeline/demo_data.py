"""The demo's images and manifest: drawn and ingested on first use, then kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from adu import storage
from adu.data.manifest import CARD_FILE, Manifest, load_manifest
from adu.demo.dataset import write_images
from adu.demo.manifest import IMAGES_PER_CELL, SEED, drawing_fingerprint
from adu.errors import UserError
from pipeline.ingest import ingest
from pipeline.ingestion.config import LOCAL, IngestConfig


def prepare_demo(folder: str | Path) -> Manifest:
    """Gives the demo's manifest, which is written under a folder or URL if it is not there yet.

    Raises:
        UserError: If the folder cannot be written.
    """
    # Drawn by other code, they would be other images.
    place = storage.join(str(folder), f"demo-{IMAGES_PER_CELL}-{SEED}-{drawing_fingerprint()}")
    manifest, images = storage.join(place, "manifest"), storage.join(place, "images")
    # Its card is written last: a manifest that has one is whole.
    if storage.exists(storage.join(manifest, CARD_FILE)):
        return load_manifest(manifest)
    storage.check_reachable(place, write=True)
    if storage.is_local(place):
        write_images(Path(images), IMAGES_PER_CELL, SEED)
    else:
        with tempfile.TemporaryDirectory() as drawn:
            write_images(Path(drawn), IMAGES_PER_CELL, SEED)
            storage.upload_folder(Path(drawn), images)
    try:
        return ingest(
            IngestConfig(
                source=images,
                out=manifest,
                name="demo",
                synthetic=True,
                seed=SEED,
                # A submitted job joins its cluster later, whose nodes may not see this one's files.
                address=LOCAL,
            )
        )
    except UserError:
        # Another command may have been at it as well, and was first.
        if not storage.exists(storage.join(manifest, CARD_FILE)):
            raise
        return load_manifest(manifest)
