"""Finds images that are there more than once, or nearly: among any number of them.

Of each image a few bytes are kept, which tell who may have a copy or a look-alike; only these are
looked at more closely.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# Perceptual hashes of 64 bits that differ in at most so many bits are of similar images. Their 4
# words of 16 bits then have one in common, which is how pairs are found without comparing all.
SIMILAR_BITS = 3
HASH_WORDS = 4
# In a group of hashes with a word in common, ordered by hash, each is compared to so many next
# ones. In a million images a group has 20; only in a heap of look-alikes are some pairs missed.
MAX_NEIGHBOURS = 64
# So many hashes are sorted at a time, in a hundred million of them.
HASHES_AT_ONCE = 2**24


class Fingerprints:
    """What is kept of every image: 13 bytes."""

    def __init__(self) -> None:
        self._copies: list[np.ndarray] = []
        self._phashes: list[np.ndarray] = []
        self._known: list[np.ndarray] = []

    def add(self, table: pa.Table) -> None:
        """Takes further images, with source_sha256 and phash."""
        starts = [int(its[:8], 16) for its in table["source_sha256"].to_pylist()]
        phash = table["phash"].combine_chunks()
        self._copies.append(np.array(starts, np.uint32))
        self._phashes.append(phash.fill_null(0).to_numpy().astype(np.uint64))
        self._known.append(np.asarray(phash.is_valid()).astype(bool))

    def suspects(self) -> np.ndarray:
        """Numbers of the images that may have a copy or a look-alike, in order."""
        copies = np.concatenate(self._copies)
        self._copies = [copies]
        order = np.argsort(copies)
        again = np.flatnonzero(copies[order[1:]] == copies[order[:-1]])
        found = [order[again], order[again + 1]]
        del order
        known = np.flatnonzero(np.concatenate(self._known))
        hashes = np.concatenate(self._phashes)[known]
        return np.unique(np.concatenate([*found, known[_close_pairs(hashes)].ravel()]))


def same_images(table: pa.Table) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Finds images that stand in two classes, splits or domains, or twice in one.

    Args:
        table: With image_id, domain, class, split, source_sha256 and phash, ordered by image_id.

    Returns:
        For each of the checks the pairs, and the row numbers of all images concerned. Of copies of
        one image, one pair is given.
    """
    ids = table["image_id"]
    domain, class_, split, hashes = (
        table[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("domain", "class", "split", "source_sha256")
    )
    similar = _similar_pairs(table["phash"].combine_chunks())
    similar = similar[hashes[similar[:, 0]] != hashes[similar[:, 1]]]
    pairs: dict[str, list[str]] = {}
    rows: dict[str, np.ndarray] = {}
    for what, column in (("classes", class_), ("splits", split), ("domains", domain)):
        same, copies = _copies_apart(hashes, column)
        apart = similar[column[similar[:, 0]] != column[similar[:, 1]]]
        for kind, found, its_rows in (("same", same, copies), ("similar", apart, np.unique(apart))):
            check = f"{kind}_in_two_{what}"
            pairs[check] = [f"{ids[int(a)]} = {ids[int(b)]}" for a, b in found]
            rows[check] = its_rows
    # The number of a row is all that tells copies in one cell and split apart.
    cells = (domain * (class_.max() + 1) + class_) * (split.max() + 1) + split
    in_cell = np.unique(hashes * (cells.max() + 1) + cells, return_inverse=True)[1]
    same, copies = _copies_apart(in_cell, np.arange(len(ids)))
    pairs["same_in_one_cell"] = [f"{ids[int(a)]} = {ids[int(b)]}" for a, b in same]
    rows["same_in_one_cell"] = copies
    return pairs, rows


def _copies_apart(values: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds equal values whose rows differ in a column.

    Returns:
        For each such value two rows that differ, and all rows with such values.
    """
    order = np.lexsort((column, values))
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    first, last = order[starts], order[np.append(starts[1:], len(order)) - 1]
    apart = column[first] != column[last]
    pairs = np.sort(np.stack([first[apart], last[apart]], 1), 1)
    return pairs[np.argsort(pairs[:, 0])], np.flatnonzero(np.isin(values, values[first[apart]]))


def _similar_pairs(phash: pa.Array) -> np.ndarray:
    """Pairs of rows whose hashes differ in at most `SIMILAR_BITS` bits, each once, ordered."""
    known = np.flatnonzero(np.asarray(phash.is_valid()))
    hashes = phash.drop_null().to_numpy().astype(np.uint64)
    return np.unique(np.sort(known[_close_pairs(hashes)], 1), axis=0)


def _close_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs of places of hashes that differ in at most `SIMILAR_BITS` bits."""
    pairs = [np.empty((0, 2), np.int64)]
    n_parts = len(hashes) // HASHES_AT_ONCE + 1
    for word in range(HASH_WORDS):
        words = ((hashes >> np.uint64(16 * word)) & np.uint64(0xFFFF)).astype(np.uint16)
        for part in range(n_parts):
            # Who has a word in common is in one part.
            own = np.flatnonzero(words % n_parts == part) if n_parts > 1 else np.arange(len(words))
            order = own[np.lexsort((hashes[own], words[own]))]
            pairs += _neighbours(hashes, words, order)
    return np.concatenate(pairs)


def _neighbours(hashes: np.ndarray, words: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Close pairs among ordered hashes: each is compared to the next ones in its group."""
    pairs = []
    for step in range(1, MAX_NEIGHBOURS + 1):
        a, b = order[:-step], order[step:]
        together = words[a] == words[b]
        if not together.any():
            break
        a, b = a[together], b[together]
        close = np.bitwise_count(hashes[a] ^ hashes[b]) <= SIMILAR_BITS
        pairs.append(np.stack([a[close], b[close]], 1))
    return pairs
