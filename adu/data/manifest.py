"""Manifests: what images there are, in Parquet, with a small JSON card.

A manifest is a folder or URL: ``card.json``, Parquet files in ``rows``, a row an image, and, if
the images were packed, shards in ``images``. The files are named after their content and the card,
which names them, is written last. So whoever finds a card finds a whole manifest, and one that
replaces another leaves the old one's files alone until its own card is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adu import storage
from adu.data.rows import SCHEMA, RowTable, open_rows, write_rows
from adu.errors import UserError

CARD_FILE = "card.json"
SCHEMA_VERSION = 2
# Version 1 has one file and does not name it.
VERSION_1_FILES = ("manifest.parquet",)
SPLITS = ("train", "test")

# What the digest covers: what an image is and is used as, not where it lies.
DIGEST_COLUMNS = ("image_id", "domain", "class", "split", "sha256")

# Of one look at all that is beyond the shots: the standard error of an accuracy over so many is
# about half a point.
MOST_VAL_IMAGES = 8192

Cell = tuple[str, str]  # (domain, class)


@dataclass(frozen=True)
class FewShotSplit:
    """Row numbers of the training and validation images; no row is in both.

    Attributes:
        train_rows: Of the training images.
        val_rows: Of the validation images.
        val_places: The place of each validation image among those of its domain and class, from 0.
    """

    train_rows: np.ndarray
    val_rows: np.ndarray
    val_places: np.ndarray


@dataclass(frozen=True, eq=False)
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
        rows: The rows, loaded by column.
        selected: Which of the rows belong to it, in ascending order; None for all.
        allow_uri: Where its images may lie beside its own places (`adu.data.uris`): URI prefixes.
    """

    url: str
    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    digest: str
    source: str
    synthetic: bool
    rows: RowTable
    selected: np.ndarray | None = None
    allow_uri: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.rows.n_rows if self.selected is None else len(self.selected)

    @cached_property
    def table(self) -> pa.Table:
        """All columns of all images, ordered by ``image_id``; `columns` loads less."""
        return self.columns(SCHEMA.names)

    def columns(
        self, names: Sequence[str], rows: Sequence[int] | np.ndarray | None = None
    ) -> pa.Table:
        """Some columns of all images, or of these in this order.

        Columns that are not asked for are not loaded, and of rows that are not asked for no more
        than is needed to get at the others.

        Args:
            names: Columns of `SCHEMA`.
            rows: Row numbers; None for all.
        """
        if rows is None and self.selected is None:
            return self.rows.columns(names)
        if rows is None:
            wanted = self.selected
        else:
            wanted = self._base_rows(np.asarray(rows, dtype=np.int64))
        assert wanted is not None
        return self.rows.take(names, wanted)

    def select(self, classes: Sequence[str], domains: Sequence[str]) -> Manifest:
        """The images of these classes and domains; names that it does not have are left out."""
        kept_classes = tuple(name for name in classes if name in self.classes)
        kept_domains = tuple(name for name in domains if name in self.domains)
        if (kept_classes, kept_domains) == (self.classes, self.domains):
            return self
        in_classes = self.rows.numbers("class", kept_classes) >= 0
        in_domains = self.rows.numbers("domain", kept_domains) >= 0
        selected = np.flatnonzero(in_classes & in_domains)
        if self.selected is not None:
            selected = np.intersect1d(selected, self.selected, assume_unique=True)
        return replace(self, classes=kept_classes, domains=kept_domains, selected=selected)

    def cell_counts(self, split: str) -> dict[Cell, int]:
        """Number of images of each domain and class in a split, for all of them."""
        in_split = self._numbers_of_all("split", SPLITS) == SPLITS.index(split)
        cells = self._cells()[in_split]
        counts = np.bincount(cells, minlength=len(self.domains) * len(self.classes)).tolist()
        names = ((d, c) for d in self.domains for c in self.classes)
        return dict(zip(names, counts, strict=True))

    def few_shot_split(
        self, shots: int, val_shots: int | Literal["all"], seed: int
    ) -> FewShotSplit:
        """Draws training and validation images from the training side.

        Of each domain and class, the images with the smallest hashes of (seed, image id) are
        taken: the same ones on every machine, whatever the order of the rows.

        Args:
            shots: Training images of each domain and class.
            val_shots: Validation images of each domain and class; or all that there are beside the
                training images, at most an equal share of `MOST_VAL_IMAGES` of each.
            seed: Which of the possible splits.

        Raises:
            UserError: Naming a domain and class that has too few.
        """
        n_cells = len(self.domains) * len(self.classes)
        most = max(1, MOST_VAL_IMAGES // n_cells) if val_shots == "all" else val_shots
        self._check_enough(shots, 1 if val_shots == "all" else val_shots)
        rows = np.flatnonzero(self._numbers_of_all("split", SPLITS) == SPLITS.index("train"))
        hashes = self._hashes(rows, seed)
        # Cells in the order of their names, as before numbers came in.
        by_name = self._name_order()
        rank = np.empty(len(by_name), np.int64)
        rank[by_name] = np.arange(len(by_name))
        cells = rank[self._cells()[rows]]
        order = _smallest_first(cells, hashes)
        place = np.arange(len(order)) - _starts(cells[order])
        drawn = rows[order]
        is_val = (place >= shots) & (place < shots + most)
        return FewShotSplit(drawn[place < shots], drawn[is_val], place[is_val] - shots)

    def test_rows(self) -> np.ndarray:
        """Row numbers of the test split."""
        return np.flatnonzero(self._numbers_of_all("split", SPLITS) == SPLITS.index("test"))

    def check_test_images(self) -> None:
        """Checks that every domain can be tested.

        Raises:
            UserError: Naming a domain without test images: nobody wants to learn of it after
                days of training.
        """
        tested = dict.fromkeys(self.domains, 0)
        for (domain, _), n in self.cell_counts("test").items():
            tested[domain] += n
        for domain, n in tested.items():
            if n == 0:
                raise UserError(
                    f"manifest {self.url}: domain {domain} has no test images (split 'test'), so "
                    "that no model could be tested on it"
                )

    def class_numbers(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """The numbers of the rows' classes."""
        return self._numbers_of_all("class", self.classes)[np.asarray(rows, np.int64)].tolist()

    def domain_numbers(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """The numbers of the rows' domains."""
        return self._numbers_of_all("domain", self.domains)[np.asarray(rows, np.int64)].tolist()

    def _base_rows(self, rows: np.ndarray) -> np.ndarray:
        """The same rows, counted among all rows of the files."""
        return rows if self.selected is None else self.selected[rows]

    def _numbers_of_all(self, column: str, names: tuple[str, ...]) -> np.ndarray:
        numbers = self.rows.numbers(column, names)
        numbers = numbers if self.selected is None else numbers[self.selected]
        if len(numbers) and numbers.min() < 0:
            row = self.columns(["image_id", column], [int(numbers.argmin())]).to_pylist()[0]
            raise UserError(
                f"manifest {self.url}: image {row['image_id']} has the {column} '{row[column]}' "
                f"(known: {', '.join(names)})"
            )
        return numbers

    def _cells(self) -> np.ndarray:
        """For each row the number of its cell: domain by domain, class by class."""
        domains = self._numbers_of_all("domain", self.domains).astype(np.int64)
        return domains * len(self.classes) + self._numbers_of_all("class", self.classes)

    def _name_order(self) -> np.ndarray:
        """The numbers of all cells, ordered by the names of domain and class."""
        names = [(d, c) for d in self.domains for c in self.classes]
        return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)

    def _hashes(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """SHA-256 of (seed, image id) of these ascending rows, as four big-endian numbers each.

        The ids are read row group by row group, so that they are never all in memory.
        """
        base = self._base_rows(rows)
        parts = [np.empty((0, 4), np.uint64)]
        for first, group in self.rows.groups(["image_id"]):
            low, high = np.searchsorted(base, [first, first + group.num_rows])
            ids = group["image_id"].to_pylist()
            texts = (f"{seed}/{ids[row]}" for row in (base[low:high] - first).tolist())
            hashed = b"".join([hashlib.sha256(text.encode()).digest() for text in texts])
            parts.append(np.frombuffer(hashed, ">u8").astype(np.uint64).reshape(-1, 4))
        return np.concatenate(parts)

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
    """Opens a manifest; columns are loaded when they are asked for.

    Raises:
        UserError: If there is none, or it is empty, broken or of a newer version.
    """
    card_url = storage.join(url, CARD_FILE)
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
        names = (card["name"], _names(card, "classes"), _names(card, "domains"))
        described = (card["digest"], card["source"], card["synthetic"])
        kinds = (str, str, str, bool)
        if not all(map(isinstance, (card["name"], *described), kinds)):
            raise ValueError("name, digest, source: must be text, synthetic true or false")
        files = _names(card, "files") if version > 1 else VERSION_1_FILES
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"manifest {url}: is not one ({reason})") from error
    rows = open_rows(url, files)
    if rows.n_rows == 0:
        raise UserError(f"manifest {url}: holds no images")
    return Manifest(url, *names, *described, rows)


def write_manifest(
    url: str,
    rows: Sequence[Mapping[str, Any]] | pa.Table,
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    rejected: Sequence[Mapping[str, str]] = (),
    checks: Mapping[str, Any] | None = None,
    entries: Mapping[str, int] | None = None,
) -> Manifest:
    """Writes a manifest, or replaces the one that is there.

    Args:
        url: Folder to write to.
        rows: The images, with the columns of `SCHEMA`, in any order.
        name: Name of the data set.
        source: Where the images were found.
        synthetic: Whether they were made up by a program.
        rejected: Images that were left out, with ``image_id`` and ``reason``.
        checks: What was noticed about the images, for the card.
        entries: How many entries the source has and what became of them, for the card.

    Raises:
        UserError: If the folder cannot be written, or there are no rows.
    """
    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    if rows.num_rows == 0:
        raise UserError(f"manifest {url}: there are no images to write")
    table = rows.select(SCHEMA.names).sort_by("image_id")
    before = {storage.below(url, str(path)) for path in _files_of(url)}
    files = write_rows(url, table)
    shards = pc.unique(table["shard"]).drop_null().to_pylist()
    cells = table.group_by(["domain", "split"]).aggregate([([], "count_all")]).to_pylist()
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "classes": sorted(pc.unique(table["class"]).to_pylist()),
        "domains": sorted(pc.unique(table["domain"]).to_pylist()),
        "digest": content_digest(table),
        "source": source,
        "synthetic": synthetic,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": {f"{c['domain']}/{c['split']}": c["count_all"] for c in cells},
        "checks": dict(checks or {}),
        "entries": dict(entries or {}),
        "rejected": [dict(image) for image in rejected],
        "files": files,
        "shards": sorted(shards),
    }
    storage.write_bytes(storage.join(url, CARD_FILE), json.dumps(card, indent=2).encode())
    for old in sorted(before - {storage.join(url, path) for path in (*files, *shards)}):
        storage.remove(old)
    return load_manifest(url)


def content_digest(rows: Sequence[Mapping[str, Any]] | pa.Table) -> str:
    """SHA-256 over `DIGEST_COLUMNS` of the rows, whatever their order."""
    if isinstance(rows, pa.Table):
        columns = [rows[column].to_pylist() for column in DIGEST_COLUMNS]
    else:
        columns = [[row[column] for row in rows] for column in DIGEST_COLUMNS]
    digest = hashlib.sha256()
    for line in sorted(json.dumps(values) for values in zip(*columns, strict=True)):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _names(card: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The classes, domains or files of a card.

    Raises:
        ValueError: If they are none.
    """
    names = card[field]
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{field} = {names!r}, allowed: a list of names")
    if len(set(names)) < len(names):
        raise ValueError(f"{field} = {names!r}, allowed: each name once")
    return tuple(names)


def _files_of(url: str) -> set[str]:
    """Files of the manifest that is there now, none if there is none that can be read."""
    card_url = storage.join(url, CARD_FILE)
    if not storage.exists(card_url):
        return set()
    try:
        card = json.loads(storage.read_bytes(card_url))
        return {*card.get("files", VERSION_1_FILES), *card.get("shards", ())}
    except (ValueError, TypeError, AttributeError):
        return set()


def _smallest_first(cells: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Orders rows by cell and, within a cell, by hash."""
    order = np.lexsort((hashes[:, 0], cells))
    first_words, its_cells = hashes[order, 0], cells[order]
    tied = (first_words[1:] == first_words[:-1]) & (its_cells[1:] == its_cells[:-1])
    if tied.any():  # once in millions of data sets: look at the whole hash
        order = np.lexsort((*hashes.T[::-1], cells))
    return order


def _starts(cells: np.ndarray) -> np.ndarray:
    """For each of some ordered rows, the place where its cell starts."""
    changes = np.flatnonzero(np.diff(cells, prepend=-1))
    lengths = np.diff([*changes, len(cells)])
    return np.repeat(changes, lengths)
