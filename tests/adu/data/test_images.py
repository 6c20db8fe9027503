"""Decoding: every kind of image comes out upright in 8-bit RGB, or is refused by name and kind."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from adu.data.images import decode_image
from adu.errors import UserError


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def decoded(image, **options):
    return np.asarray(decode_image(encoded(image, **options), "x")).astype(int)


def huge_png():
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_white(mode):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((3, 3), (0, 0, 0, 255))
    pixels = decoded(image.convert(mode), format="TIFF" if mode == "PA" else "PNG")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [0, 0, 0]


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 0)
    pixels = decoded(image, transparency=1)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_in_exif_is_applied(orientation):
    upright = np.zeros((8, 16), np.uint8)
    upright[:4, :8] = 250  # top left
    upright[4:, 8:] = 100  # bottom right
    # How the camera held them: the inverse of what the orientation asks for.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    found = np.asarray(decode_image(data, "x"))[..., 0]
    assert np.array_equal(found, upright)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decoded(Image.new("L", (8, 4)), exif=exif).shape == (4, 8, 3)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format_):
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = decoded(Image.fromarray(levels), format=format_)
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_integers_and_floats_of_32_bits_are_scaled_by_their_range():
    wide = np.array([[0, 32768, 65535]])
    assert decoded(Image.fromarray(wide.astype(np.int32)), format="TIFF")[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    shares = np.array([[0, 0.5, 1]], np.float32)
    assert decoded(Image.fromarray(shares), format="TIFF")[0, :, 0].tolist() == [0, 128, 255]


def test_16_bit_colour_keeps_its_high_byte():
    # Pillow writes none, so the PNG is made by hand: one pixel of 16-bit red.
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 0xC0FF, 0x4000, 0))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    data += chunk(b"IEND", b"")
    assert decode_image(data, "x").getpixel((0, 0)) == (0xC0, 0x40, 0)


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    assert np.abs(decoded(red, format="JPEG", quality=95)[8, 8] - [220, 30, 40]).max() <= 4


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16", "YCbCr", "LAB"])
def test_every_colour_mode_becomes_rgb(mode):
    image = Image.new(mode, (4, 4))
    assert decode_image(encoded(image, format="TIFF"), "x").mode == "RGB"


PNG = encoded(Image.new("RGB", (64, 64), "red"))
JPEG = encoded(Image.effect_noise((64, 64), 90), format="JPEG")


@pytest.mark.parametrize(
    ("data", "problem", "message"),
    [
        (b"", "zero_byte", "image a/b/c.png: is empty"),
        (b"no image", "not_an_image", "image a/b/c.png: cannot be decoded .not an image"),
        (PNG[:60], "truncated", "image a/b/c.png: cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "truncated", "image a/b/c.png: cannot be decoded"),
        (JPEG[:-2000], "truncated", "image a/b/c.png: cannot be decoded"),
        (huge_png(), "decompression_bomb", "image a/b/c.png: .*(40000|bomb)"),
    ],
)
def test_broken_images_are_named_with_the_kind_of_problem(data, problem, message):
    with pytest.raises(UserError, match=message) as raised:
        decode_image(data, "a/b/c.png")
    assert raised.value.problem == problem


def test_postscript_is_no_image_and_starts_no_program(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("subprocess.Popen", started)
    eps = encoded(Image.new("RGB", (8, 8), "red"), format="EPS")
    with pytest.raises(UserError, match="image x: cannot be decoded .not an image, or of a format"):
        decode_image(eps, "x")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format_", ["AVIF", "DDS", "JPEG", "PNG", "TIFF", "WEBP", "GIF", "QOI"])
def test_broken_bytes_of_any_format_are_an_error_that_names_the_image(format_):
    """Pillow's decoders raise whatever they come across: IndexError, NotImplementedError, ..."""
    whole = bytearray(encoded(Image.effect_noise((64, 64), 90).convert("RGB"), format=format_))
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(200):
        broken = whole.copy()
        for place in rng.integers(0, min(len(broken), 200), 6):
            broken[place] = rng.integers(256)
        try:
            assert decode_image(bytes(broken[: rng.integers(20, len(broken))]), "a/b").mode == "RGB"
        except UserError as error:
            n_refused += 1
            assert str(error).startswith("image a/b: ")
    assert n_refused > 20
