"""Finds images that are there more than once, or nearly: among any number of them.

Of each image a few bytes are kept, which tell who may have a copy or a look-alike; only these are
looked at more closely.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Perceptual hashes of 64 bits that differ in at most so many bits are of similar images. Their 4
# words of 16 bits then have one in common, which is how pairs are found without comparing all. Of
# the other 48 bits, in 4 chunks of 12, one chunk is in common as well: so large groups are parted.
SIMILAR_BITS = 3
HASH_WORDS, WORD_BITS = 4, 16
CHUNK_BITS = 12
# In a group of hashes with a word in common, or a word and a chunk where more than so many have the
# word, each is compared to so many next ones: only in a heap of look-alikes are some pairs missed.
MAX_NEIGHBOURS = 64
# So many images are compared at a time, and read at a time.
IMAGES_OF_PART = 2**22
IMAGES_OF_BLOCK = 2**18
# Of SHA-256 the first 8 bytes: by 4, two million of a hundred million images would be suspected.
PRINT = np.dtype([("copy", np.uint64), ("phash", np.uint64), ("has_phash", np.bool_)])


class Fingerprints:
    """What is kept of every image, in a file for temporary data: 17 bytes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="adu-fingerprints-")
        self._file = Path(self._folder.name) / "prints"
        self._n_images = 0

    def __enter__(self) -> Fingerprints:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, table: pa.Table) -> None:
        """Takes further images, with source_sha256 and phash."""
        starts = pc.utf8_slice_codeunits(table["source_sha256"], 0, 16).to_pylist()
        phash = table["phash"].combine_chunks()
        prints = np.empty(table.num_rows, PRINT)
        prints["copy"] = np.frombuffer(bytes.fromhex("".join(starts)), ">u8")
        prints["phash"] = phash.fill_null(0).to_numpy()
        prints["has_phash"] = np.asarray(phash.is_valid())
        with self._file.open("ab") as file:
            file.write(prints.tobytes())
        self._n_images += len(prints)

    def suspects(self) -> np.ndarray:
        """Numbers of the images that may have a copy or a look-alike, in order."""
        found = [np.empty(0, np.int64)]
        for rows, starts in self._parts("copy", HASH_WORDS - 1):
            order = np.argsort(starts)
            again = np.flatnonzero(starts[order[1:]] == starts[order[:-1]])
            found += [rows[order[again]], rows[order[again + 1]]]
        for word in range(HASH_WORDS):
            for rows, hashes in self._parts("phash", word):
                found.append(np.unique(rows[_close_pairs(hashes, word)]))
        return np.unique(np.concatenate(found))

    def _parts(self, name: str, word: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of images and their values, some at a time: those with a word in common together.

        No more than `IMAGES_OF_PART`, and those that have one further word.
        """
        counts = np.zeros(2**16, np.int64)
        for _, values in self._values(name):
            counts += np.bincount(_word(values, word), minlength=len(counts))
        part_of = np.cumsum(counts) // IMAGES_OF_PART
        for part in np.unique(part_of):
            of_part = []
            for rows, values in self._values(name):
                own = part_of[_word(values, word)] == part
                of_part.append((rows[own], values[own]))
            its_rows, its_values = zip(*of_part, strict=True)
            yield np.concatenate(its_rows), np.concatenate(its_values)

    def _values(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of all images that have a value, and the values, block by block."""
        for first in range(0, self._n_images, IMAGES_OF_BLOCK):
            offset = first * PRINT.itemsize
            prints = np.fromfile(self._file, PRINT, IMAGES_OF_BLOCK, offset=offset)
            own = np.flatnonzero(prints["has_phash"] | (name != "phash"))
            yield first + own, prints[name][own]


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
    pairs = np.concatenate([_close_pairs(hashes, word) for word in range(HASH_WORDS)])
    return np.unique(np.sort(known[pairs], 1), axis=0)


def _close_pairs(hashes: np.ndarray, word: int) -> np.ndarray:
    """Pairs of places of hashes that differ in at most `SIMILAR_BITS` bits, not in this word."""
    words = _word(hashes, word)
    crowded = np.bincount(words, minlength=2**16)[words] > MAX_NEIGHBOURS
    rare, common = np.flatnonzero(~crowded), np.flatnonzero(crowded)
    pairs = [rare[_close_in_groups(_rotated(hashes[rare], word), WORD_BITS)]]
    if len(common):
        keys = _rotated(hashes[common], word)
        for _ in range(HASH_WORDS):
            pairs.append(common[_close_in_groups(keys, WORD_BITS + CHUNK_BITS)])
            keys = _next_chunk(keys)
    return np.concatenate(pairs)


def _close_in_groups(keys: np.ndarray, group_bits: int) -> np.ndarray:
    """Pairs of places; each key is compared to the next ones that begin with the same bits."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    pairs = [np.empty((0, 2), np.int64)]
    for step in range(1, MAX_NEIGHBOURS + 1):
        differing = keys[step:] ^ keys[:-step]
        together = differing >> np.uint64(64 - group_bits) == 0
        if not together.any():
            break
        first = np.flatnonzero(together & (np.bitwise_count(differing) <= SIMILAR_BITS))
        pairs.append(np.stack([order[first], order[first + step]], 1))
    return np.concatenate(pairs)


def _rotated(hashes: np.ndarray, word: int) -> np.ndarray:
    """The same bits, this word's first."""
    # In two steps: a shift by all 64 bits is undefined.
    below = hashes >> np.uint64(WORD_BITS * word) >> np.uint64(WORD_BITS)
    return hashes << np.uint64(WORD_BITS * (HASH_WORDS - 1 - word)) | below


def _next_chunk(keys: np.ndarray) -> np.ndarray:
    """The same bits, the last chunk's next after the first word."""
    n_others = 64 - WORD_BITS
    first = keys >> np.uint64(n_others) << np.uint64(n_others)
    others = keys ^ first
    last = others & np.uint64(2**CHUNK_BITS - 1)
    return first | others >> np.uint64(CHUNK_BITS) | last << np.uint64(n_others - CHUNK_BITS)


def _word(values: np.ndarray, word: int) -> np.ndarray:
    """One of the 16-bit words of each value, counted from the lowest."""
    return (values >> values.dtype.type(WORD_BITS * word)).astype(np.uint16)
