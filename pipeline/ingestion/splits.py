"""Which images are set aside for testing, where the layout does not say.

Of each domain and class those with the smallest hashes of (seed, name). So an image that turns out
to be broken, or is mended, moves no other one from a split to another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from adu.data.sorting import RowSorter
from pipeline.ingestion.listing import Cell

Limits = dict[Cell, str]  # the largest hash of each domain and class that is set aside


def draw_limits(rows: Iterable[pa.Table], fraction: float, seed: int) -> Limits:
    """Finds up to which hash the images of each domain and class are set aside.

    Args:
        rows: The images, block by block.
        fraction: Share of each domain and class.
        seed: Which images.
    """
    count: Counter[Cell] = Counter()
    numbers: dict[Cell, str] = {}
    with RowSorter("key") as hashes:
        for block in rows:
            drawn = block.filter(pc.is_null(block["split"]))
            cells = _cells_of(drawn)
            count.update(cells)
            for cell in cells:
                numbers.setdefault(cell, f"{len(numbers):09}/")
            keys = [
                numbers[cell] + its
                for cell, its in zip(cells, _hashes_of(drawn, seed), strict=True)
            ]
            hashes.add(pa.table({"key": pa.array(keys, pa.string())}))
        wanted = {numbers[cell]: round(n * fraction) for cell, n in count.items()}
        cell_of = {number: cell for cell, number in numbers.items()}
        limits: Limits = {}
        for block in hashes.ordered():
            for key in block["key"].to_pylist():
                number, its = key[:10], key[10:]
                if wanted[number]:
                    wanted[number] -= 1
                    limits[cell_of[number]] = its
    return limits


def with_splits(rows: Iterable[pa.Table], limits: Limits, seed: int) -> Iterator[pa.Table]:
    """Fills in the splits that the layout does not tell."""
    for block in rows:
        drawn = [
            "test" if its <= limits.get(cell, "") else "train"
            for cell, its in zip(_cells_of(block), _hashes_of(block, seed), strict=True)
        ]
        splits = pc.coalesce(block["split"], pa.array(drawn, pa.string()))
        yield block.set_column(block.column_names.index("split"), "split", splits)


def _cells_of(block: pa.Table) -> list[Cell]:
    return list(zip(block["domain"].to_pylist(), block["class"].to_pylist(), strict=True))


def _hashes_of(block: pa.Table, seed: int) -> list[str]:
    names = block["image_id"].to_pylist()
    return [hashlib.sha256(f"{seed}/{name}".encode()).hexdigest() for name in names]
