"""Checks over all images: the same ones and similar ones, found without comparing all pairs."""

import io
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.ingestion.image_checks import (
    SIMILAR_BITS,
    _similar_pairs,
    inspect_image,
    perceptual_hash,
    same_images,
)


def picture(seed, size=(90, 70)):
    """Structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def distance(one, other):
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_the_perceptual_hash_outlives_a_new_encoding_and_a_new_size():
    for seed in range(10):
        image = picture(seed)
        again = Image.open(io.BytesIO(encoded(image, "JPEG", quality=70)))
        assert distance(image, again) <= SIMILAR_BITS
        assert distance(image, image.resize((180, 140), Image.Resampling.BICUBIC)) <= SIMILAR_BITS
        assert distance(image, picture(seed + 100)) > 3 * SIMILAR_BITS


def test_images_of_one_colour_have_none():
    assert perceptual_hash(Image.new("RGB", (50, 50), "white")) is None
    assert perceptual_hash(Image.new("L", (1, 1))) is None


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


def test_16_bit_colour_is_told_although_pillow_hides_it():
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + bytes(12)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
    assert inspect_image(data, "x").flags == ("16_bit",)


def test_a_reduced_image_keeps_its_proportions_and_says_what_it_was():
    data = encoded(picture(0, (400, 200)))
    inspected = inspect_image(data, "x", short_side=50, keep=True)
    assert Image.open(io.BytesIO(inspected.data)).size == (100, 50)
    assert (inspected.width, inspected.height, inspected.source_bytes) == (100, 50, len(data))
    assert inspected.sha256 != inspected.source_sha256
