"""Text files of people: encodings that declare themselves are read, others are told in a line."""

import pytest

from adu.errors import UserError
from pipeline.text_files import decode_text, lines_of, quoted


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-mark", "utf-16-be-mark"]
)
def test_what_declares_itself_is_read_without_its_mark(encoding):
    text = "domain,写真\r\nä"
    if encoding.endswith("mark"):
        data = f"\ufeff{text}".encode(encoding.removesuffix("-mark"))
    else:
        data = text.encode(encoding)
    assert decode_text(data, "file x") == text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("one\nzw\xf6lf".encode("latin-1"), "file x, line 2: byte 0xf6 is not UTF-8 (allowed: "),
        ("写真".encode("utf-16-le"), "file x, line 1: byte 0x99 is not UTF-8 (allowed: "),
        ("cup\nstar".encode("utf-16-le"), "file x, line 1: holds a zero byte (allowed: "),
        (b"\xff\xfe\x00", "file x, line 1: byte 0x00 is not UTF-16 (allowed: "),
        (b"\xef\xbb\xbf\xff", "file x, line 1: byte 0xff is not UTF-8 (allowed: "),
    ],
)
def test_another_encoding_is_one_line_that_names_the_place(data, says):
    with pytest.raises(UserError) as error:
        decode_text(data, "file x")
    assert str(error.value).startswith(says)


def test_only_line_ends_part_lines():
    assert lines_of("a\u2028b\x0bc\nd\r\ne\rf\x85") == ["a\u2028b\x0bc", "d", "e", "f\x85"]


def test_what_is_quoted_is_short_and_on_one_line():
    assert quoted("a\nb") == "'a\\nb'"
    assert len(quoted("x" * 10_000)) < 120
