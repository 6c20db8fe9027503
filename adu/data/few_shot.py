"""The draw of a few-shot split: of each domain and class, the images with the smallest hashes.

Rows come block by block and all but the smallest of each cell are forgotten at once, so that the
memory of a draw depends on the cells and shots, not on the manifest's size.

Array names carry their shape: N rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

HASH_WORDS = 4
# Rows that are kept beside the smallest before they are sorted out.
SPARE_ROWS = 2**17


@dataclass(frozen=True)
class FewShotSplit:
    """Row numbers of the training and validation images; no row is in both."""

    train_rows: np.ndarray
    val_rows: np.ndarray


class SmallestOfCells:
    """Keeps the rows with the smallest hashes of each cell.

    Args:
        n_cells: How many cells there are.
        n_kept: How many rows of each are kept.
    """

    def __init__(self, n_cells: int, n_kept: int) -> None:
        self._n_kept = n_kept
        self._most_rows = 2 * n_cells * n_kept + SPARE_ROWS
        # First words of a hash that may still be among the smallest.
        self._limits = np.full(n_cells, np.iinfo(np.uint64).max, np.uint64)
        self._rows_N = np.empty(0, np.int64)
        self._cells_N = np.empty(0, np.int64)
        self._hashes_N4 = np.empty((0, HASH_WORDS), np.uint64)

    def add(self, rows_N: np.ndarray, cells_N: np.ndarray, hashes_N4: np.ndarray) -> None:
        """Looks at some more rows."""
        near_N = hashes_N4[:, 0] <= self._limits[cells_N]
        self._rows_N = np.concatenate([self._rows_N, rows_N[near_N]])
        self._cells_N = np.concatenate([self._cells_N, cells_N[near_N]])
        self._hashes_N4 = np.concatenate([self._hashes_N4, hashes_N4[near_N]])
        if len(self._rows_N) > self._most_rows:
            self._sort_out()

    def split(self, shots: int, val_shots: int) -> FewShotSplit:
        """The smallest of each cell for training, the next ones for validation, cell by cell."""
        place_N = self._sort_out()
        train_N = place_N < shots
        val_N = (place_N >= shots) & (place_N < shots + val_shots)
        return FewShotSplit(self._rows_N[train_N], self._rows_N[val_N])

    def _sort_out(self) -> np.ndarray:
        """Drops all but the smallest; gives the places of the others in their cells."""
        order = smallest_first(self._cells_N, self._hashes_N4)
        place_N = np.arange(len(order)) - _starts(self._cells_N[order])
        order, place_N = order[place_N < self._n_kept], place_N[place_N < self._n_kept]
        self._rows_N, self._cells_N = self._rows_N[order], self._cells_N[order]
        self._hashes_N4 = self._hashes_N4[order]
        last_N = place_N == self._n_kept - 1
        self._limits[self._cells_N[last_N]] = self._hashes_N4[last_N, 0]
        return place_N


def hashes_of(image_ids: Iterable[str], seed: int) -> np.ndarray:
    """SHA-256 of (seed, image id), as four big-endian numbers each."""
    hashed = b"".join([hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in image_ids])
    return np.frombuffer(hashed, ">u8").astype(np.uint64).reshape(-1, HASH_WORDS)


def smallest_first(cells_N: np.ndarray, hashes_N4: np.ndarray) -> np.ndarray:
    """Orders rows by cell and, within a cell, by hash."""
    order = np.lexsort((hashes_N4[:, 0], cells_N))
    first_words, its_cells = hashes_N4[order, 0], cells_N[order]
    tied = (first_words[1:] == first_words[:-1]) & (its_cells[1:] == its_cells[:-1])
    if tied.any():  # once in millions of data sets: look at the whole hash
        order = np.lexsort((*hashes_N4.T[::-1], cells_N))
    return order


def _starts(cells_N: np.ndarray) -> np.ndarray:
    """For each of some ordered rows, the place where its cell starts."""
    changes = np.flatnonzero(np.diff(cells_N, prepend=-1))
    lengths = np.diff([*changes, len(cells_N)])
    return np.repeat(changes, lengths)
