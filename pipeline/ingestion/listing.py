"""All images of a source in the order of their names: on the disk, if they are too many for memory.

What is known of all of them together is small: how many each domain and class has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adu.data.listing import plain_name
from adu.data.sorting import RowSorter
from adu.errors import UserError
from pipeline.ingestion.sources import LeftOut

SHOWN_NAMES = 8
ROWS_OF_BLOCK = 2**14

LISTED_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("domain", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("n_bytes", pa.int64()),
    ]
)

Cell = tuple[str, str]  # (domain, class)
NO_DOMAIN = ""  # of an image that has none: no plain name is empty


@dataclass(frozen=True, slots=True)
class Found:
    """An image as the layout tells it.

    Attributes:
        image_id: Its name in the data set, the same wherever the data set lies.
        uri: Where it lies.
        domain: Its domain, or `NO_DOMAIN`.
        class_: Its class.
        split: ``train``, ``test`` or None where the layout does not say.
        n_bytes: Its size, where a listing told it.
    """

    image_id: str
    uri: str
    domain: str
    class_: str
    split: str | None = None
    n_bytes: int | None = None


FIELDS = attrgetter("image_id", "uri", "domain", "class_", "split", "n_bytes")


class Listing:
    """What a source holds. Every entry of it is either an image or left out.

    Args:
        source: Where it was found.
        left_out: Everything else: files and folders of a source, none of a list of images.
        one_spelling: Whether domains and classes get their plain names.

    Attributes:
        left_out: As given.
        cells: How many images each domain and class has, in the layout's spelling.
    """

    def __init__(self, source: str, left_out: list[LeftOut], *, one_spelling: bool) -> None:
        self._source = source
        self.left_out = left_out
        self._one_spelling = one_spelling
        self._sorter = RowSorter("image_id")
        self.cells: Counter[Cell] = Counter()

    def close(self) -> None:
        """Gives up what it has on the disk."""
        self._sorter.close()

    def take(self, images: Iterable[Found]) -> None:
        """Takes down images, in any order."""
        following = iter(images)
        while block := list(islice(following, ROWS_OF_BLOCK)):
            columns = zip(*map(FIELDS, block), strict=True)
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(columns, LISTED_SCHEMA, strict=True)
            ]
            table = pa.table(arrays, schema=LISTED_SCHEMA)
            self._sorter.add(table)
            self.cells.update(cell_counts(table))

    @property
    def n_images(self) -> int:
        """How many images it holds."""
        return self.cells.total()

    def rows(self) -> Iterator[pa.Table]:
        """All images in the order of their names, with the columns of `LISTED_SCHEMA`.

        Raises:
            UserError: If two have one name.
        """
        spelling = self._spelling()
        last: str | None = None
        for block in self._sorter.ordered(again=True):
            names = pa.chunked_array([pa.array([last], pa.string()), *block["image_id"].chunks])
            twice = pc.equal(names[1:], names[:-1]).index(True).as_py()
            if twice >= 0:
                raise UserError(f"source {self._source}: '{names[twice]}' is listed twice")
            last = names[-1].as_py()
            for name, plain in spelling.items():
                found = block[name].combine_chunks().dictionary_encode()
                values = [plain[value] for value in found.dictionary.to_pylist()]
                column = pa.array(values, pa.string()).take(found.indices)
                block = block.set_column(block.column_names.index(name), name, column)
            yield block

    def plain_cells(self) -> Counter[Cell]:
        """How many images each domain and class has, in the names that `rows` gives them."""
        spelling, counts = self._spelling(), Counter[Cell]()
        for (domain, class_), n in self.cells.items():
            counts[spelling["domain"][domain], spelling["class"][class_]] += n
        return counts

    def _spelling(self) -> dict[str, dict[str, str]]:
        """The names of the domains and of the classes.

        Spellings of a class that differ in hyphens alone are one class too; the commoner one stays.
        """
        domains = {domain for domain, _ in self.cells}
        classes = {class_ for _, class_ in self.cells}
        if not self._one_spelling:
            return {"domain": {d: d for d in domains}, "class": {c: c for c in classes}}
        count: Counter[str] = Counter()
        for (_, class_), n in self.cells.items():
            count[plain_name(class_)] += n
        chosen: dict[str, str] = {}
        for name in sorted(count, key=lambda name: (-count[name], name)):
            chosen.setdefault(name.replace("-", "_"), name)
        return {
            "domain": {domain: domain and plain_name(domain) for domain in domains},
            "class": {c: chosen[plain_name(c).replace("-", "_")] for c in classes},
        }


def common_classes(cells: Mapping[Cell, int], rule: Literal["same", "intersection"]) -> set[str]:
    """Sees to it that all domains have the same classes: Mem and For compare over one class set.

    Args:
        cells: How many images there are of each domain and class.
        rule: ``same``: anything else is an error; ``intersection``: classes that a domain lacks
            are left out of all of them.

    Returns:
        The classes that stay.

    Raises:
        UserError: Naming the classes that a domain lacks, or if fewer than two domains are left.
    """
    by_domain: dict[str, set[str]] = {}
    for domain, class_ in cells:
        by_domain.setdefault(domain, set()).add(class_)
    if len(by_domain) < 2:
        raise UserError(f"source has one domain ({next(iter(by_domain))}): at least 2 are needed")
    everything = set().union(*by_domain.values())
    common = everything.intersection(*by_domain.values())
    if rule == "intersection":
        if not common:
            raise UserError("source: its domains have no class in common")
        return common
    lacking = [
        f"domain {domain}: lacks classes that other domains have: {_some(everything - classes)}"
        for domain, classes in sorted(by_domain.items())
        if classes != everything
    ]
    if lacking:
        raise UserError(f"{'; '.join(lacking)} (--classes intersection leaves them out)")
    return everything


def cells_of(table: pa.Table) -> tuple[list[Cell], np.ndarray]:
    """Domains and classes of some images, each pair once, and which of these an image is of."""
    domains, classes = (
        table[name].combine_chunks().dictionary_encode() for name in ("domain", "class")
    )
    n_classes = max(len(classes.dictionary), 1)
    numbers = domains.indices.to_numpy().astype(np.int64) * n_classes + classes.indices.to_numpy()
    pairs, of_cell = np.unique(numbers, return_inverse=True)
    names = domains.dictionary.to_pylist(), classes.dictionary.to_pylist()
    return [(names[0][pair // n_classes], names[1][pair % n_classes]) for pair in pairs], of_cell


def cell_counts(table: pa.Table) -> dict[Cell, int]:
    """How many images each domain and class has."""
    cells, of_cell = cells_of(table)
    return dict(zip(cells, np.bincount(of_cell).tolist(), strict=True))


def of_classes(
    blocks: Iterable[pa.Table], classes: Collection[str], *, others: bool = False
) -> Iterator[pa.Table]:
    """The images of these classes, or of all others."""
    known = pa.array(sorted(classes), pa.string())
    for block in blocks:
        inside = pc.is_in(block["class"], known)
        chosen = block.filter(pc.invert(inside) if others else inside)
        if chosen.num_rows:
            yield chosen


def of_split(blocks: Iterable[pa.Table], split: str) -> Iterator[pa.Table]:
    """The images of a split."""
    for block in blocks:
        chosen = block.filter(pc.equal(block["split"], split))
        if chosen.num_rows:
            yield chosen


def _some(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
