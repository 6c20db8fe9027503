"""Manifests: what images there are, in Parquet, with a small JSON card.

A manifest is a folder or URL: ``card.json``, Parquet files in ``rows``, a row an image, and, if
the images were packed, shards in ``images``. The files are named after their content and the card,
which names them, is written last. So whoever finds a card finds a whole manifest, and one that
replaces another leaves the old one's files alone until its own card is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from adu import storage
from adu.data.few_shot import FewShotSplit, SmallestOfCells, hashes_of
from adu.data.rows import SCHEMA, RowTable, row_indices
from adu.errors import UserError

CARD_FILE = "card.json"
SCHEMA_VERSION = 2
# Version 1 has one file and does not name it.
VERSION_1_FILES = ("manifest.parquet",)
SPLITS = ("train", "test")
CELL_COLUMNS = ("domain", "class", "split")

Cell = tuple[str, str]  # (domain, class)


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
        is_part: Whether rows of other classes and domains are left out of it.
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
    is_part: bool = False
    allow_uri: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.rows.n_rows if self.selected is None else len(self.selected)

    @cached_property
    def selected(self) -> np.ndarray | None:
        """Which of the rows belong to it, in ascending order; None for all."""
        if not self.is_part:
            return None
        parts = [np.empty(0, np.int64)]
        for first, columns, _ in self.rows.numbered_groups(self._cell_names()):
            parts.append(first + np.flatnonzero(np.min(columns, axis=0) >= 0))
        return np.concatenate(parts)

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
        return replace(self, classes=kept_classes, domains=kept_domains, is_part=True)

    def cell_counts(self, split: str) -> dict[Cell, int]:
        """Number of images of each domain and class in a split, for all of them."""
        counts = self._counts[SPLITS.index(split)].tolist()
        names = ((d, c) for d in self.domains for c in self.classes)
        return dict(zip(names, counts, strict=True))

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
        self.check_enough(shots, val_shots)
        # Cells in the order of their names, as before numbers came in.
        by_name = self._name_order()
        rank = np.empty(len(by_name), np.int64)
        rank[by_name] = np.arange(len(by_name))
        smallest = SmallestOfCells(len(by_name), shots + val_shots)
        for rows, splits, cells, table in self._blocks(["image_id"]):
            train = np.flatnonzero(splits == SPLITS.index("train"))
            ids = table["image_id"].take(row_indices(train)).to_pylist()
            smallest.add(rows[train], rank[cells[train]], hashes_of(ids, seed))
        return smallest.split(shots, val_shots)

    def test_rows(self) -> np.ndarray:
        """Row numbers of the test split."""
        test = SPLITS.index("test")
        return np.concatenate([rows[splits == test] for rows, splits, _, _ in self._blocks()])

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

    def numbers(self, column: str, table: pa.Table) -> list[int]:
        """The numbers of the classes or domains in rows of its table.

        Args:
            column: ``class`` or ``domain``.
            table: Rows with that column and ``image_id``.
        """
        names = self._cell_names()[column]
        number = {name: i for i, name in enumerate(names)}
        found = np.array([number.get(name, -1) for name in table[column].to_pylist()], np.int64)
        self._check_known(column, found, lambda row: table.slice(row, 1))
        return found.tolist()

    def check_enough(self, shots: int, val_shots: int) -> None:
        """Checks that every domain and class has enough training images.

        Raises:
            UserError: Naming a domain and class that has too few.
        """
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

    @cached_property
    def _counts(self) -> np.ndarray:
        """Number of images of each split and cell."""
        n_cells = len(self.domains) * len(self.classes)
        counts = np.zeros(len(SPLITS) * n_cells, np.int64)
        for _, splits, cells, _ in self._blocks():
            counts += np.bincount(splits * n_cells + cells, minlength=len(counts))
        return counts.reshape(len(SPLITS), n_cells)

    def _cell_names(self) -> dict[str, tuple[str, ...]]:
        return {"domain": self.domains, "class": self.classes}

    def _blocks(
        self, also: Sequence[str] = ()
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, pa.Table]]:
        """All images, row group by row group, so that never all are in memory.

        Yields:
            Row numbers, numbers of the splits and of the cells (domain by domain, class by class),
            and the further columns that are asked for.
        """
        names = {**self._cell_names(), "split": SPLITS}
        n_before = 0
        for first, (domains, classes, splits), table in self.rows.numbered_groups(names, also):
            own = np.arange(len(splits))
            if self.is_part:
                own = np.flatnonzero((domains >= 0) & (classes >= 0))
                table = table.take(row_indices(own))
            for name, numbers in zip(names, (domains, classes, splits), strict=True):
                self._check_known(name, numbers[own], partial(self._row_at, first + own))
            cells = domains[own].astype(np.int64) * len(self.classes) + classes[own]
            yield n_before + np.arange(len(own)), splits[own], cells, table
            n_before += len(own)

    def _row_at(self, base_rows: np.ndarray, place: int) -> pa.Table:
        return self.rows.take(["image_id", *CELL_COLUMNS], base_rows[[place]])

    def _base_rows(self, rows: np.ndarray) -> np.ndarray:
        """The same rows, counted among all rows of the files."""
        return rows if self.selected is None else self.selected[rows]

    def _check_known(
        self, column: str, numbers: np.ndarray, row_at: Callable[[int], pa.Table]
    ) -> None:
        if not len(numbers) or numbers.min() >= 0:
            return
        row = row_at(int(numbers.argmin())).select(["image_id", column]).to_pylist()[0]
        known = {**self._cell_names(), "split": SPLITS}[column]
        raise UserError(
            f"manifest {self.url}: image {row['image_id']} has the {column} '{row[column]}' "
            f"(known: {', '.join(known)})"
        )

    def _name_order(self) -> np.ndarray:
        """The numbers of all cells, ordered by the names of domain and class."""
        names = [(d, c) for d in self.domains for c in self.classes]
        return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)


def load_manifest(url: str) -> Manifest:
    """Opens a manifest; columns are loaded when they are asked for.

    Raises:
        UserError: If there is none, or it is empty, broken or of a newer version.
    """
    manifest = described_manifest(url)
    if manifest.rows.n_rows == 0:
        raise UserError(f"manifest {url}: holds no images")
    return manifest


def described_manifest(url: str) -> Manifest:
    """Reads the card alone; the files of rows are opened when something of them is asked for.

    Raises:
        UserError: If there is none, or it is broken or of a newer version.
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
    return Manifest(url, *names, *described, RowTable(url, files))


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
