"""Writes a Parquet manifest of a folder or bucket of images.

    python pipeline/ingest.py --source URL --out URL

Images lie as ``domain/class/file``. Every image is read once, decoded fully and hashed; the ones
that cannot be decoded are left out and listed. Where nothing says which images are for testing, a
fixed share of each domain and class is set aside for it, by the hash of the image's name.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adu import storage
from adu.config import StrictModel
from adu.errors import UserError
from adu.images import decode_image
from adu.manifest import CARD_FILE, Manifest, write_manifest
from pipeline.command import EXIT_OK, run_command

SHORTCUTS: dict[str, str] = {}

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class IngestConfig(StrictModel):
    """Write a manifest of images that lie as domain/class/file."""

    source: str = Field(description="folder or URL of the images")
    out: str = Field(description="folder or URL of the manifest to write")
    layout: Literal["domain/class/file"] = "domain/class/file"
    name: str | None = Field(None, description="name of the data set; unset: the source's")
    test_fraction: float = Field(0.5, gt=0, lt=1, description="share set aside for testing")
    seed: int = Field(0, ge=0, description="which images are set aside")
    strict: bool = Field(False, description="stop at the first image that cannot be used")
    overwrite: bool = Field(False, description="replace a manifest that is already there")
    threads: int = Field(16, ge=1, description="images read at a time")
    synthetic: bool = Field(False, description="mark the images as made up by a program")


@dataclass(frozen=True)
class Found:
    """An image as the layout tells it."""

    image_id: str
    uri: str
    domain: str
    class_: str


def ingest(config: IngestConfig, console: Console | None = None) -> Manifest:
    """Reads the images and writes their manifest.

    Args:
        config: What to read and where to write.
        console: Where to show progress and rejected images; None for nowhere.

    Raises:
        UserError: If the source has no images in the layout, an image cannot be used and
            ``strict`` is set, or the manifest exists or cannot be written. Nothing is written
            then.
    """
    if storage.exists(storage.join(config.out, CARD_FILE)) and not config.overwrite:
        raise UserError(f"manifest {config.out}: exists already (--overwrite replaces it)")
    images = find_images(config.source)
    storage.check_reachable(config.out, write=True)
    rows, rejected = _read_all(images, config, console)
    if not rows:
        raise UserError(f"source {config.source}: none of its {len(images)} images can be used")
    _check_classes(rows)
    _assign_splits(rows, config.test_fraction, config.seed)
    return write_manifest(
        config.out,
        rows,
        name=config.name or config.source.rstrip("/").rsplit("/", 1)[-1],
        source=config.source,
        synthetic=config.synthetic,
        rejected=rejected,
    )


def find_images(source: str) -> list[Found]:
    """Lists the images of a source that lie as domain/class/file, ordered by name.

    Raises:
        UserError: If there is no source, or no image in it in this layout.
    """
    fs, root = storage.filesystem_for(source)
    if not storage.exists(source):
        raise UserError(f"source {source}: no such folder")
    root = root.rstrip("/")
    paths = sorted(path for path in fs.find(root) if path.lower().endswith(IMAGE_SUFFIXES))
    images, elsewhere = [], []
    for path in paths:
        image_id = path[len(root) + 1 :]
        parts = image_id.split("/")
        if len(parts) == 3:
            uri = path if storage.is_local(source) else fs.unstrip_protocol(path)
            images.append(Found(image_id, uri, parts[0], parts[1]))
        else:
            elsewhere.append(image_id)
    if elsewhere:
        raise UserError(
            f"source {source}: '{elsewhere[0]}' does not lie as domain/class/file"
            + (f", nor do {len(elsewhere) - 1} more" if len(elsewhere) > 1 else "")
        )
    if not images:
        raise UserError(f"source {source}: has no images (looked for {', '.join(IMAGE_SUFFIXES)})")
    return images


def _read_all(
    images: Sequence[Found], config: IngestConfig, console: Console | None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    stop = threading.Event()
    with ThreadPoolExecutor(config.threads) as pool:
        described = pool.map(lambda image: None if stop.is_set() else _describe(image), images)
        try:
            for image, row in zip(images, _progress(described, len(images), console), strict=True):
                if isinstance(row, dict):
                    rows.append(row)
                elif config.strict:
                    raise row or AssertionError
                else:
                    rejected.append({"image_id": image.image_id, "reason": str(row)})
        finally:
            stop.set()
    for left_out in rejected:
        if console:
            console.print(f"left out: {left_out['reason']}", soft_wrap=True, highlight=False)
    return rows, rejected


def _progress(items: Iterator[Any], total: int, console: Console | None) -> Iterator[Any]:
    if console is None:
        return items
    return iter(track(items, "reading images", total, console=console, transient=True))


def _describe(image: Found) -> dict[str, Any] | UserError:
    data = storage.read_bytes(image.uri)
    try:
        width, height = decode_image(data, image.image_id).size
    except UserError as error:
        return error
    return {
        "image_id": image.image_id,
        "uri": image.uri,
        "domain": image.domain,
        "class": image.class_,
        "width": width,
        "height": height,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _check_classes(rows: Sequence[dict[str, Any]]) -> None:
    """All domains must have the same classes: Mem and For compare them over one class set."""
    by_domain: dict[str, set[str]] = {}
    for row in rows:
        by_domain.setdefault(row["domain"], set()).add(row["class"])
    everything = set().union(*by_domain.values())
    for domain, classes in sorted(by_domain.items()):
        if classes != everything:
            missing = ", ".join(sorted(everything - classes))
            raise UserError(f"domain {domain}: lacks classes that other domains have: {missing}")
    if len(by_domain) < 2:
        raise UserError(f"source has one domain ({next(iter(by_domain))}): at least 2 are needed")


def _assign_splits(rows: Sequence[dict[str, Any]], test_fraction: float, seed: int) -> None:
    """Sets aside the images with the smallest hashes of each domain and class for testing."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["domain"], row["class"]), []).append(row)
    for cell in cells.values():
        n_test = round(len(cell) * test_fraction)
        cell.sort(key=lambda row: hashlib.sha256(f"{seed}/{row['image_id']}".encode()).digest())
        for i, row in enumerate(cell):
            row["split"] = "test" if i < n_test else "train"


def _summary(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.name}: {manifest.table.num_rows} images")
    for column in ("domain", "classes", "train", "test"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    counts = {split: manifest.cell_counts(split) for split in ("train", "test")}
    for domain in manifest.domains:
        sums = [
            sum(n for (its, _), n in counts[split].items() if its == domain)
            for split in ("train", "test")
        ]
        table.add_row(domain, str(len(manifest.classes)), *map(str, sums))
    return table


def run(config: IngestConfig) -> int:
    """The command's body: ingest and say what came of it."""
    console = Console(stderr=True)
    manifest = ingest(config, console)
    console.print(_summary(manifest))
    console.print(f"manifest {manifest.url}", soft_wrap=True, highlight=False)
    console.print(f"digest   {manifest.digest}", soft_wrap=True, highlight=False)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(IngestConfig, run, SHORTCUTS, argv)


if __name__ == "__main__":
    sys.exit(main())
