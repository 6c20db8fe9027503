"""What was read of all images, in the order of their names, and what is checked over all of them.

The rows are on the disk if they are too many for memory, and gone through a few times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adu.data.rows import SCHEMA, row_indices
from adu.data.sorting import RowSorter
from pipeline.ingestion.checks import FLAGS, CheckResult, Findings
from pipeline.ingestion.listing import Cell, cell_counts, common_classes, of_classes
from pipeline.ingestion.same_images import Fingerprints, same_images
from pipeline.ingestion.sources import LeftOut

COMPARED = ["image_id", "domain", "class", "split", "source_sha256", "phash"]


class CheckedRows:
    """The usable images, and what is noticed about these and all others.

    Args:
        n_listed: How many images the source has.

    Attributes:
        cells: How many usable images each domain and class has.
        n_unusable: How many others were read.
        entries: How many entries the source has, and what became of them; once checked.
    """

    def __init__(self, n_listed: int) -> None:
        self._n_found = n_listed
        self._sorter = RowSorter("image_id")
        self._findings = Findings()
        self._flags: dict[int, list[str]] = {}
        self._classes: set[str] = set()
        self._n_left_out = 0
        self.cells: Counter[Cell] = Counter()
        self.n_unusable = 0
        self._reasons: list[tuple[str, str]] = []
        self.entries: dict[str, int] = {}

    def __enter__(self) -> CheckedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._sorter.close()

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Names of images that were left out, and why, in order."""
        return sorted(self._reasons)

    def add(self, table: pa.Table) -> None:
        """Takes what was read of some images."""
        usable = pc.is_null(table["problem"])
        bad = table.filter(pc.invert(usable)).select(["problem", "image_id", "reason"])
        self.n_unusable += bad.num_rows
        self.leave_out(
            LeftOut(row["problem"], row["image_id"], row["reason"]) for row in bad.to_pylist()
        )
        good = table.filter(usable)
        self.cells.update(cell_counts(good))
        self._sorter.add(good)

    def leave_out(self, entries: Iterable[LeftOut], *, listed: bool = True) -> None:
        """Notes what is left out, be it one of the images that were listed or beside them."""
        for each in entries:
            self._n_found += not listed
            self._n_left_out += 1
            self._findings.add(each.check, [each.name])
            if each.reason:
                self._reasons.append((each.name, each.reason))

    def lack(self, blocks: Iterable[pa.Table]) -> None:
        """Notes images that are left out because a domain lacks their class."""
        for block in blocks:
            self._n_left_out += block.num_rows
            self._findings.add("class_lacking", block["image_id"].to_pylist())

    def check(self, rule: Literal["same", "intersection"], at_least: int) -> list[CheckResult]:
        """Runs the checks over all images.

        Args:
            rule: What becomes of classes that a domain lost to broken images.
            at_least: Training images that each domain and class should have.

        Raises:
            UserError: If the domains have not the same classes any more, by the rule ``same``.
        """
        self._classes = common_classes(self.cells, rule)
        if not self._classes.issuperset(class_ for _, class_ in self.cells):
            self.lack(of_classes(self._sorter.ordered(again=True), self._classes, others=True))
        training: Counter[Cell] = Counter()
        n_used = n_converted = 0
        with Fingerprints() as fingerprints:
            for block in self._used():
                n_used += block.num_rows
                n_converted += self._check_each(block)
                fingerprints.add(block)
                training.update(cell_counts(block.filter(pc.equal(block["split"], "train"))))
            suspects = fingerprints.suspects()
        self._compare(suspects)
        few = ((*cell, training[cell]) for cell in self.cells if cell[1] in self._classes)
        small = [f"{domain}/{class_} ({n})" for domain, class_, n in few if n < at_least]
        self._findings.add("few_shots", small)
        self.entries = {
            "found": self._n_found,
            "used": n_used - n_converted,
            "converted": n_converted,
            "left_out": self._n_left_out,
        }
        assert n_used + self._n_left_out == self._n_found, f"do not add up: {self.entries}"
        return self._findings.results()

    def rows(self) -> Iterator[pa.Table]:
        """The manifest's rows with their flags."""
        first = 0
        for block in self._used():
            flags = block["flags"].to_pylist()
            warned = pc.is_valid(block["warnings"]).to_pylist()
            for row, its in enumerate(flags):
                further = self._flags.get(first + row, ())
                if warned[row] or further:
                    flags[row] = [*(its or []), *["warned"] * warned[row], *further]
            first += block.num_rows
            column = pa.array(flags, SCHEMA.field("flags").type)
            block = block.set_column(block.column_names.index("flags"), "flags", column)
            yield block.select(SCHEMA.names).cast(SCHEMA)

    def _used(self) -> Iterator[pa.Table]:
        return of_classes(self._sorter.ordered(again=True), self._classes)

    def _check_each(self, block: pa.Table) -> int:
        """Notes what is flagged of single images; how many of them were converted."""
        n_converted = 0
        flagged = block.filter(pc.is_valid(block["flags"]))
        names = flagged["image_id"].to_pylist()
        for name, flags in zip(names, flagged["flags"].to_pylist(), strict=True):
            n_converted += not set(FLAGS).isdisjoint(flags)
            for flag in flags:
                self._findings.add(flag, [name])
        warned = block.filter(pc.is_valid(block["warnings"])).select(["image_id", "warnings"])
        self._findings.add(
            "warned", [f"{row['image_id']}: {row['warnings'][0]}" for row in warned.to_pylist()]
        )
        return n_converted

    def _compare(self, suspects: np.ndarray) -> None:
        """Compares the images that may have a copy or a look-alike."""
        parts = []
        first = 0
        for block in self._used():
            low, high = np.searchsorted(suspects, [first, first + block.num_rows])
            if high > low:
                wanted = block.select(COMPARED).take(row_indices(suspects[low:high] - first))
                parts.append(wanted)
            first += block.num_rows
        if not parts:
            return
        pairs, rows_of = same_images(pa.concat_tables(parts))
        for check, names in pairs.items():
            self._findings.add(check, names)
        for check, rows in rows_of.items():
            for row in suspects[rows].tolist():
                self._flags.setdefault(row, []).append(check)
