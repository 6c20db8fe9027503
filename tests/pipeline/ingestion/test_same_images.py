"""Copies and look-alikes are found among any number of images."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingestion import same_images as module
from pipeline.ingestion.same_images import SIMILAR_BITS, Fingerprints, _similar_pairs, same_images


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


def test_suspects_are_all_that_have_a_copy_or_a_look_alike(monkeypatch):
    monkeypatch.setattr(module, "HASHES_AT_ONCE", 50)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    hashes[250:] = hashes[:50] ^ np.uint64(5)
    copies = [f"{number:08x}" for number in (*range(290), *range(100, 110))]
    prints = Fingerprints()
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        phash = pa.array(hashes[part], mask=np.arange(start, start + len(hashes[part])) == 260)
        prints.add(pa.table({"source_sha256": copies[part], "phash": phash}))
    look_alikes = {*range(250, 300), *range(50)} - {10, 260}
    assert prints.suspects().tolist() == sorted(look_alikes | {*range(100, 110), *range(290, 300)})
