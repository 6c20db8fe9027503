"""The row part of an ingest of any number of images: time, memory and disk, without the images.

    python -m tests.benchmarks.ingest_scale [--images 1000000]

The listing and what is read of each image are made up; everything else is the ingest itself:
order, splits, pieces, journal, comparison of all images, digest and manifest. One image in a
thousand has a copy, and one a look-alike. Prints one line of JSON; memory is the process' peak.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa

from pipeline.ingest import IngestConfig, ingest
from pipeline.ingestion.listing import Found, Listing
from pipeline.ingestion.pieces import READ_SCHEMA, Journal, Piece
from pipeline.ingestion.spread import ReadPieces

N_DOMAINS, N_CLASSES = 6, 345
MIB = 2**20


def made_up_listing(n_images: int) -> Listing:
    """Images of DomainNet's shape, in no order of names."""
    listing = Listing("made up", [], one_spelling=True)
    listing.take(
        Found(
            f"domain{i % N_DOMAINS}/class{i // 7 % N_CLASSES}/{i * 7919 % 10**9:09}-{i}.jpg",
            f"s3://bucket/images/{i}",
            f"domain{i % N_DOMAINS}",
            f"class{i // 7 % N_CLASSES}",
            None,
            100_000,
        )
        for i in range(n_images)
    )
    return listing


def made_up_reading(_: object, journal: Journal, __: int) -> ReadPieces:
    """What is read of the images of a piece, without a look at any."""

    def read(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
        for piece in pieces:
            yield piece, journal.add(piece, made_up_rows(piece))

    return read


def made_up_rows(piece: Piece) -> pa.Table:
    """Hashes that are some other image's in one of a thousand cases."""
    n = piece.rows.num_rows
    rng = np.random.default_rng(piece.number)
    digits = rng.bytes(32 * n).hex()
    sha = [digits[start : start + 64] for start in range(0, len(digits), 64)]
    phash = rng.integers(0, 2**63, n, dtype=np.uint64)
    sha[::1000] = [f"{piece.number // 2:064x}"] * len(sha[::1000])
    phash[1::1000] = piece.number // 2 * 0x9E3779B97F4A7C15 % 2**64
    constants = {"width": 500, "height": 375, "bytes": 100_000}
    columns = {
        **{name: piece.rows[name] for name in ("image_id", "uri", "domain", "class", "split")},
        **{name: pa.array(np.full(n, value)) for name, value in constants.items()},
        "sha256": pa.array(sha),
        "source_sha256": pa.array(sha),
        "phash": pa.array(phash),
    }
    rows = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(n, field.type)
        for field in READ_SCHEMA
    ]
    return pa.table(rows, schema=READ_SCHEMA)


class Peak(threading.Thread):
    """Watches what this process takes: unshared memory, and files in the scratch folder."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(daemon=True)
        self.memory = self.disk = 0
        self._scratch = scratch
        self.start()

    def run(self) -> None:
        """Looks every two seconds, since a look takes time itself."""
        process = psutil.Process()
        while True:
            self.memory = max(self.memory, process.memory_full_info().uss)
            files = (file for file in self._scratch.rglob("*") if file.is_file())
            self.disk = max(self.disk, sum(file.stat().st_size for file in files))
            time.sleep(2)


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    n_images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        peak = Peak(Path(folder))
        before = psutil.Process().memory_full_info().uss
        start, cpu_start = time.perf_counter(), time.process_time()
        with (
            patch("pipeline.ingest.find_images", lambda *_, **__: made_up_listing(n_images)),
            patch("pipeline.ingest._read_pieces", made_up_reading),
        ):
            manifest = ingest(IngestConfig(source="/made-up", out=f"{folder}/manifest"))
        assert manifest.n_images == n_images
        figures = {
            "images": n_images,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu_start, 1),
            "peak_mib": round(peak.memory / MIB),
            "of_it_before_mib": round(before / MIB),
            "disk_mib": round(peak.disk / MIB),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
