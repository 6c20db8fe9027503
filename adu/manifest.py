"""Manifests: what images there are, in Parquet, with a small JSON card.

A manifest is a folder or URL with two files: ``manifest.parquet``, a row an image, and
``card.json``. The card is written last, so whoever finds a card finds a whole manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adu import storage
from adu.errors import UserError

CARD_FILE = "card.json"
TABLE_FILE = "manifest.parquet"
SCHEMA_VERSION = 2

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("domain", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("flags", pa.list_(pa.string())),  # quality flags, null where there are none
        ("shard", pa.string()),  # relative to the manifest's folder, null where the image is loose
        ("shard_row", pa.int32()),
    ]
)
# Version 1 lacks the last three; they are read as null.

# What the digest covers: what an image is and is used as, not where it lies.
DIGEST_COLUMNS = ("image_id", "domain", "class", "split", "sha256")

Cell = tuple[str, str]  # (domain, class)


@dataclass(frozen=True)
class FewShotSplit:
    """Row numbers of the training and validation images; no row is in both."""

    train_rows: np.ndarray
    val_rows: np.ndarray


@dataclass(frozen=True)
class Manifest:
    """The images of a data set.

    Attributes:
        url: Where the manifest lies.
        name: Name of the data set.
        classes: Class names; a class' number is its place here.
        domains: Domain names; a domain's number is its place here.
        digest: Hash over the content, the same wherever the images lie.
        source: Where the images were found.
        synthetic: Whether they were made up by a program.
        table: A row an image, ordered by ``image_id``; columns as in `SCHEMA`.
    """

    url: str
    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    digest: str
    source: str
    synthetic: bool
    table: pa.Table

    def columns(
        self, names: Sequence[str], rows: Sequence[int] | np.ndarray | None = None
    ) -> pa.Table:
        """Some columns of all rows, or of these rows in this order.

        Columns and rows that are not asked for are not loaded.
        """
        table = self.table.select(list(names))
        return table if rows is None else table.take(pa.array(np.asarray(rows, dtype=np.int64)))

    def select(self, classes: Sequence[str], domains: Sequence[str]) -> Manifest:
        """The images of these classes and domains; names that it does not have are left out."""
        kept_classes = tuple(name for name in classes if name in self.classes)
        kept_domains = tuple(name for name in domains if name in self.domains)
        if (kept_classes, kept_domains) == (self.classes, self.domains):
            return self
        in_classes = pc.is_in(self.table["class"], pa.array(kept_classes, pa.string()))
        in_domains = pc.is_in(self.table["domain"], pa.array(kept_domains, pa.string()))
        table = self.table.filter(pc.and_(in_classes, in_domains))
        return replace(self, classes=kept_classes, domains=kept_domains, table=table)

    def cell_counts(self, split: str) -> dict[Cell, int]:
        """Number of images of each domain and class in a split, for all of them."""
        cells = self.table.select(["domain", "class", "split"]).to_pydict()
        rows = zip(cells["domain"], cells["class"], cells["split"], strict=True)
        counts = Counter((domain, class_) for domain, class_, its in rows if its == split)
        return {(d, c): counts[d, c] for d in self.domains for c in self.classes}

    def few_shot_split(self, shots: int, val_shots: int, seed: int) -> FewShotSplit:
        """Draws training and validation images from the training side.

        Of each domain and class, the images with the smallest hashes of (seed, image id) are
        taken: the same ones on every machine, whatever the order of the rows.

        Args:
            shots: Training images of each domain and class.
            val_shots: Validation images of each domain and class.
            seed: Which of the possible splits.

        Raises:
            UserError: Naming a domain and class that has too few.
        """
        self._check_enough(shots, val_shots)
        side = self.table.select(["image_id", "domain", "class", "split"]).to_pydict()
        cells: dict[Cell, list[tuple[bytes, int]]] = {}
        for row, image_id in enumerate(side["image_id"]):
            if side["split"][row] == "train":
                cell = (side["domain"][row], side["class"][row])
                cells.setdefault(cell, []).append((_hash(f"{seed}/{image_id}"), row))
        drawn = [[row for _, row in sorted(cells[cell])] for cell in sorted(cells)]
        train = [row for rows in drawn for row in rows[:shots]]
        val = [row for rows in drawn for row in rows[shots : shots + val_shots]]
        return FewShotSplit(np.array(train), np.array(val))

    def test_rows(self) -> np.ndarray:
        """Row numbers of the test split."""
        return np.flatnonzero(np.array(self.table["split"].to_pylist()) == "test")

    def class_numbers(self, rows: Sequence[int]) -> list[int]:
        """The numbers of the rows' classes."""
        return self._numbers("class", self.classes, rows)

    def domain_numbers(self, rows: Sequence[int]) -> list[int]:
        """The numbers of the rows' domains."""
        return self._numbers("domain", self.domains, rows)

    def _numbers(self, column: str, names: tuple[str, ...], rows: Sequence[int]) -> list[int]:
        number = {name: i for i, name in enumerate(names)}
        return [number[name] for name in self.table[column].take(list(rows)).to_pylist()]

    def _check_enough(self, shots: int, val_shots: int) -> None:
        short = [
            (n, f"{domain}/{class_}")
            for (domain, class_), n in self.cell_counts("train").items()
            if n < shots + val_shots
        ]
        if not short:
            return
        n, cell = min(short)
        more = f", and {len(short) - 1} more too" if len(short) > 1 else ""
        raise UserError(
            f"manifest {self.url}: {cell} has {n} training images, fewer than "
            f"{shots} shots + {val_shots} validation shots{more}"
        )


def load_manifest(url: str) -> Manifest:
    """Reads a manifest.

    Raises:
        UserError: If there is none, or it is empty, broken or of a newer version.
    """
    card_url, table_url = storage.join(url, CARD_FILE), storage.join(url, TABLE_FILE)
    if not storage.exists(card_url):
        raise UserError(
            f"manifest {url}: has no {CARD_FILE} (write one with 'python pipeline/ingest.py "
            f"--source IMAGES --out {url}')"
        )
    try:
        card = json.loads(storage.read_bytes(card_url))
        version = card["schema_version"]
        if version > SCHEMA_VERSION:
            raise UserError(
                f"manifest {url}: schema version {version} is newer than {SCHEMA_VERSION}, "
                "the newest that this version reads"
            )
        table = pq.read_table(io.BytesIO(storage.read_bytes(table_url)), schema=SCHEMA)
        names = (tuple(card["classes"]), tuple(card["domains"]))
        described = (card["digest"], card["source"], card["synthetic"])
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"manifest {url}: is not one ({reason})") from error
    if table.num_rows == 0:
        raise UserError(f"manifest {url}: holds no images")
    return Manifest(url, card["name"], *names, *described, table)


def write_manifest(
    url: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    rejected: Sequence[Mapping[str, str]] = (),
) -> Manifest:
    """Writes a manifest of rows with the columns of `SCHEMA`, in any order.

    Args:
        url: Folder to write to.
        rows: The images.
        name: Name of the data set.
        source: Where the images were found.
        synthetic: Whether they were made up by a program.
        rejected: Images that were left out, with ``image_id`` and ``reason``.

    Raises:
        UserError: If the folder cannot be written.
    """
    ordered = sorted(rows, key=lambda row: row["image_id"])
    table = pa.Table.from_pylist([dict(row) for row in ordered], schema=SCHEMA)
    classes = sorted(set(table["class"].to_pylist()))
    domains = sorted(set(table["domain"].to_pylist()))
    digest = content_digest(ordered)
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "classes": classes,
        "domains": domains,
        "digest": digest,
        "source": source,
        "synthetic": synthetic,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": dict(Counter(f"{row['domain']}/{row['split']}" for row in ordered)),
        "rejected": [dict(image) for image in rejected],
    }
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(url, TABLE_FILE), buffer.getvalue())
    storage.write_bytes(storage.join(url, CARD_FILE), json.dumps(card, indent=2).encode())
    return Manifest(url, name, tuple(classes), tuple(domains), digest, source, synthetic, table)


def content_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over `DIGEST_COLUMNS` of the rows, whatever their order."""
    digest = hashlib.sha256()
    for line in sorted(json.dumps([row[column] for column in DIGEST_COLUMNS]) for row in rows):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
