"""Text files that people write: in UTF-8, or in any Unicode encoding that says so itself."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from adu import storage
from adu.errors import UserError
from pipeline.names import shown

# The longer ones first: the mark of UTF-32 starts with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = "UTF-8, or UTF-16 or UTF-32 with a byte order mark"


def read_text(url: str, what: str) -> str:
    """Reads a text file.

    Args:
        url: The file.
        what: What an error calls it, such as "class names names.txt".

    Raises:
        UserError: If it cannot be read, or is in an encoding that it does not tell.
    """
    return decode_text(storage.read_bytes(url), what)


def decode_text(data: bytes, what: str) -> str:
    """The text of a file; a byte order mark says in which encoding, and is no part of it.

    Raises:
        UserError: Naming the file and the first line that is not in the encoding.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        wrong = data[error.start : error.start + 1].hex()
        raise UserError(
            f"{what}, line {line}: byte 0x{wrong} is not {encoding.upper()} (allowed: {ENCODINGS})"
        ) from error
    if "\0" in text:
        line = len(lines_of(text[: text.index("\0")]))
        raise UserError(f"{what}, line {max(line, 1)}: holds a zero byte (allowed: {ENCODINGS})")
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        UserError: If the file is missing, not YAML, in an encoding that it does not tell, or not a
            mapping, or if it holds a key twice.
    """
    try:
        text = decode_text(path.read_bytes(), f"config file {path}")
    except OSError as error:
        raise UserError(f"config file {path}: {error.strerror}") from error
    try:
        values = yaml.load(text, _StrictLoader)
    except Exception as error:
        # Beside its own errors, whatever the loader comes to with a date or number that is none.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"config file {path}: not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"config file {path}: holds a {type(values).__name__}, not a mapping")
    return values


class _StrictLoader(yaml.SafeLoader):
    """Of a key that stands there twice, YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1 and key != "<<":
                raise UserError(f"the key '{key}' stands there {count} times")
        return super().construct_mapping(node, deep)


def lines_of(text: str) -> list[str]:
    """The lines of a text; only line ends part them, and not what else Unicode calls one."""
    return re.split(r"\r\n|\n|\r", text)


def quoted(text: str, longest: int = 100) -> str:
    """A piece of a file, to be shown in an error."""
    return f"'{shown(text if len(text) <= longest else f'{text[:longest]}...')}'"
