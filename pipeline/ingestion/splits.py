"""Which images are set aside for testing, where the layout does not say.

Of each domain and class those with the smallest hashes of (seed, name). So an image that turns out
to be broken, or is mended, moves no other one from a split to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adu.data.few_shot import hashes_of, places_in_cells
from adu.data.sorting import RowSorter
from pipeline.ingestion.listing import Cell, cells_of

Limits = dict[Cell, int]  # the largest hash of each domain and class that is set aside


def draw_limits(rows: Iterable[pa.Table], fraction: float, seed: int) -> Limits:
    """Finds up to which hash the images of each domain and class are set aside.

    Args:
        rows: The images, block by block.
        fraction: Share of each domain and class.
        seed: Which images.
    """
    count: Counter[int] = Counter()
    with RowSorter("hash") as hashes:
        numbers: dict[Cell, int] = {}
        for block in rows:
            drawn = block.filter(pc.is_null(block["split"]))
            cells, of_cell = cells_of(drawn)
            own = [numbers.setdefault(cell, len(numbers)) for cell in cells]
            number = np.array(own, np.int64)[of_cell]
            count.update(number.tolist())
            hashes.add(pa.table({"hash": _hashes_of(drawn, seed), "cell": number}))
        wanted = np.array([round(count[n] * fraction) for n in numbers.values()], np.int64)
        limits = np.zeros(len(numbers), np.uint64)
        for block in hashes.ordered():
            its, of_cell = block["hash"].to_numpy(), block["cell"].to_numpy()
            by_cell = np.argsort(of_cell, kind="stable")
            place = places_in_cells(of_cell[by_cell])
            last = by_cell[place == wanted[of_cell[by_cell]] - 1]
            limits[of_cell[last]] = its[last]
            wanted -= np.bincount(of_cell, minlength=len(wanted))
    return dict(zip(numbers, limits.tolist(), strict=True))


def with_splits(rows: Iterable[pa.Table], limits: Limits, seed: int) -> Iterator[pa.Table]:
    """Fills in the splits that the layout does not tell."""
    for block in rows:
        cells, of_cell = cells_of(block)
        limit = np.array([limits.get(cell, 0) for cell in cells], np.uint64)[of_cell]
        drawn = pc.if_else(pa.array(_hashes_of(block, seed) <= limit), "test", "train")
        splits = pc.coalesce(block["split"], drawn)
        yield block.set_column(block.column_names.index("split"), "split", splits)


def _hashes_of(block: pa.Table, seed: int) -> np.ndarray:
    """The first 64 bits of each image's hash: no two of a domain and class will have the same."""
    return hashes_of(block["image_id"].to_pylist(), seed)[:, 0]
