"""Copies and look-alikes are found among any number of images."""

from collections import Counter
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingestion import same_images as module
from pipeline.ingestion.same_images import (
    MAX_NEIGHBOURS,
    SIMILAR_BITS,
    Fingerprints,
    _similar_pairs,
    same_images,
)


def test_similar_hashes_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(150):  # some of the others differ from these in 0 to 5 bits
        flips = rng.choice(64, i % 6, replace=False)
        hashes[150 + i] = hashes[i] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    expected = [
        [a, b]
        for a, b in combinations(range(300), 2)
        if int(hashes[a] ^ hashes[b]).bit_count() <= SIMILAR_BITS
    ]
    assert len(expected) == 100
    assert _similar_pairs(pa.array(hashes)).tolist() == expected


def table(*rows):
    names = ["image_id", "domain", "class", "split", "source_sha256", "phash"]
    return pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=names)


def test_pairs_are_told_by_what_differs_between_them():
    rows = [
        ("a", "photo", "cup", "train", "1", 0b1111 << 20),
        ("b", "photo", "cup", "train", "1", 0b1111 << 20),
        ("c", "photo", "cup", "test", "1", 0b1111 << 20),
        ("d", "sketch", "cup", "test", "2", 0b0111 << 20),
        ("e", "photo", "cup", "test", "3", None),
        ("f", "photo", "cup", "train", "4", 0xFFFF << 30),
        ("g", "photo", "star", "train", "4", 0xFFFF << 30),
        ("h", "photo", "star", "train", "5", 0xFFFE << 30),
    ]
    pairs, found = same_images(table(*rows))
    assert pairs == {
        "same_in_one_cell": ["a = b"],
        "same_in_two_classes": ["f = g"],
        "same_in_two_splits": ["a = c"],
        "same_in_two_domains": [],
        "similar_in_two_classes": ["f = h"],
        "similar_in_two_splits": ["a = d", "b = d"],
        "similar_in_two_domains": ["a = d", "b = d", "c = d"],
    }
    assert found["same_in_one_cell"].tolist() == [0, 1]
    assert found["same_in_two_classes"].tolist() == [5, 6]
    assert found["same_in_two_splits"].tolist() == [0, 1, 2]
    assert found["similar_in_two_domains"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_images_have_no_pairs(n):
    rows = [(str(i), "photo", "cup", "train", str(i), i * 0xFF00FF00FF00F) for i in range(n)]
    pairs, _ = same_images(table(*rows))
    assert not any(pairs.values())


def suspects(starts, hashes, in_block=70):
    """Of images whose SHA-256 start so, with these perceptual hashes or None."""
    with Fingerprints() as prints:
        for first in range(0, len(hashes), in_block):
            sha = pa.array(f"{start:016x}{0:048x}" for start in starts[first : first + in_block])
            phash = pa.array(hashes[first : first + in_block], pa.uint64())
            prints.add(pa.table({"source_sha256": sha, "phash": phash}))
        return prints.suspects().tolist()


def expected_suspects(starts, hashes):
    """The same by comparing all."""
    found = {row for row, start in enumerate(starts) if starts.count(start) > 1}
    known = [row for row, hash_ in enumerate(hashes) if hash_ is not None]
    for one, other in combinations(known, 2):
        if (hashes[one] ^ hashes[other]).bit_count() <= SIMILAR_BITS:
            found |= {one, other}
    return sorted(found)


def test_suspects_are_all_that_have_a_copy_or_a_look_alike():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    hashes[250:] = hashes[:50] ^ np.uint64(5)
    hashes = [None if row == 260 else hash_ for row, hash_ in enumerate(hashes.tolist())]
    look_alikes = {*range(250, 300), *range(50)} - {10, 260}
    copies = {*range(100, 110), *range(290, 300)}
    assert suspects([*range(290), *range(100, 110)], hashes) == sorted(look_alikes | copies)


@pytest.mark.parametrize("of_part", [1, 100, 10_000])
@pytest.mark.parametrize("common", range(4))
def test_all_look_alikes_are_found_where_a_word_is_common(monkeypatch, of_part, common):
    """Whatever word it is, whatever bits of the others differ, and in parts of any size."""
    monkeypatch.setattr(module, "IMAGES_OF_PART", of_part)
    monkeypatch.setattr(module, "IMAGES_OF_BLOCK", 64)
    rng = np.random.default_rng(common)
    n = 300
    words = rng.integers(0, 2**16, (4, 2 * n)).astype(np.uint64)
    words[common] = rng.integers(0, 3, 2 * n)
    words[:, n:] = words[:, :n]
    for word in {0, 1, 2, 3} - {common}:  # so that this word alone is in common
        words[word, n:] ^= np.uint64(1) << rng.integers(0, 16, n).astype(np.uint64)
    hashes = np.bitwise_or.reduce([words[i] << np.uint64(16 * i) for i in range(4)]).tolist()
    hashes = [None if row % 50 == 0 else hash_ for row, hash_ in enumerate(hashes)]
    assert Counter(words[common].tolist()).most_common(3)[-1][1] > MAX_NEIGHBOURS
    starts = rng.integers(0, 2**14, 2 * n).tolist()
    expected = expected_suspects(starts, hashes)
    assert n < len(expected)
    assert suspects(starts, hashes) == expected


def test_a_heap_of_look_alikes_is_told_of_without_comparing_all():
    """Each is compared to some of them alone, and still told."""
    hashes = [i % 8 for i in range(5000)]
    assert suspects(list(range(5000)), hashes) == list(range(5000))
