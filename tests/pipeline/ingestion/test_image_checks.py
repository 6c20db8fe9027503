"""What is told of one image by itself, and that its perceptual hash outlives what is done to it."""

import io

import numpy as np
from PIL import Image

from pipeline.ingestion.image_checks import inspect_image, perceptual_hash
from pipeline.ingestion.same_images import SIMILAR_BITS


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
