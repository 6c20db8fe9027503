"""Files that list images or classes: CSV and Parquet listings, DomainNet's lists, class names.

They are written by people and programs of all kinds. What cannot be understood is told in one line
with the place; nothing of it is passed over.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from adu import storage
from adu.errors import UserError
from pipeline.names import shown
from pipeline.text_files import decode_text, lines_of, quoted, read_text

NEEDED = ("path", "class")
COLUMNS = (*NEEDED, "domain", "split")
SEPARATORS = ",;\t|"
PARQUET_MAGIC = b"PAR1"
WNID = re.compile(r"n[0-9]{8}")
WNID_LENGTH = 9
# A path and a label. No data set has a million classes, and Python reads no number of any length.
SPLIT_LINE = re.compile(r"(.*[^ \t])[ \t]+([0-9]{1,9})")

# Path, class, and perhaps domain and split, with its number among the rows.
ListedRow = tuple[int, dict[str, str]]


def read_listing(url: str, needed: Sequence[str] = (*NEEDED, "domain")) -> Iterator[ListedRow]:
    """Reads a listing of images: path, class, domain and perhaps split.

    Args:
        url: A Parquet file, or text with a header and commas, semicolons, tabs or bars between.
        needed: Columns that must be filled.

    Yields:
        The rows; what is not told is empty or not there.

    Raises:
        UserError: Naming the column or row that is missing or cannot be read as text.
    """
    if not storage.exists(url):
        raise UserError(f"source {url}: no such file")
    data = storage.read_bytes(url)
    is_parquet = url.lower().endswith(".parquet") or data.startswith(PARQUET_MAGIC)
    rows = (_parquet_rows if is_parquet else _text_rows)(data, url, needed)
    for number, row in rows:
        for column in needed:
            if not row[column].strip():
                hint = " (--domains pseudo:K finds one)" if column == "domain" else ""
                raise UserError(f"listing {url}, row {number}: has no {column}{hint}")
        yield number, row


def read_split_file(url: str, name: str) -> Iterator[tuple[int, str, int]]:
    """Reads lines of ``path label``.

    Yields:
        The number of the line, the path and the label.

    Raises:
        UserError: Naming the line that is something else.
    """
    for number, line in _filled_lines(read_text(url, f"split file {name}")):
        match = SPLIT_LINE.fullmatch(line)
        path = match[1].strip("/") if match else ""
        parts = path.split("/")
        if match is None or len(parts) < 2 or {"", ".", ".."} & set(parts):
            raise UserError(f"split file {name}, line {number}: {quoted(line)} is not 'path label'")
        yield number, path, int(match[2])


def read_class_names(url: str) -> dict[str, str]:
    """Reads lines of ``wnid name``; of several names, parted by commas, the first counts.

    Raises:
        UserError: Naming the line that is something else, or names a class or a wnid again.
    """
    names: dict[str, str] = {}
    for number, line in _filled_lines(read_text(url, f"class names {url}")):
        place = f"class names {url}, line {number}"
        wnid, name = line[:WNID_LENGTH], line[WNID_LENGTH:].strip(" \t,").split(",")[0].strip()
        if not WNID.fullmatch(wnid) or not name:
            raise UserError(f"{place}: {quoted(line)} is not 'wnid name'")
        if name in names.values():
            raise UserError(f"{place}: {quoted(name)} names two classes")
        if wnid in names:
            raise UserError(f"{place}: {wnid} is named twice")
        names[wnid] = name
    return names


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines_of(text), 1):
        if line.strip(" \t"):
            yield number, line.strip(" \t")


def _text_rows(data: bytes, url: str, needed: Sequence[str]) -> Iterator[ListedRow]:
    text = decode_text(data, f"listing {url}")
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next((row for row in reader if any(row)), [])
        places = _places(header, url, needed)
        for number, row in enumerate((row for row in reader if any(row)), 1):
            if len(row) > len(header):
                raise UserError(
                    f"listing {url}, row {number}: has {len(row)} fields, more than the header's "
                    f"{len(header)}"
                )
            full = [*row, *[""] * (len(header) - len(row))]
            yield number, {column: full[place] for column, place in places.items()}
    except csv.Error as error:
        raise UserError(f"listing {url}, line {reader.line_num}: {error}") from error


def _separator(text: str) -> str:
    """The separator that finds most of the columns in the header."""
    header = next((line for line in lines_of(text) if line.strip()), "")

    def n_columns(separator: str) -> int:
        names = {_plain(name.strip('"')) for name in header.split(separator)}
        return len(names & {*COLUMNS})

    return max(SEPARATORS, key=n_columns)


def _parquet_rows(data: bytes, url: str, needed: Sequence[str]) -> Iterable[ListedRow]:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        schema = file.schema_arrow
        places = _places(schema.names, url, needed)
        for column, place in places.items():
            if not _is_text(schema.field(place).type):
                kind = " ".join(str(schema.field(place).type).split())
                raise UserError(
                    f"listing {url}: column {column} holds {kind[:60]} (allowed: text, integers)"
                )
        table = file.read(columns=[schema.names[place] for place in places.values()])
        columns = {
            column: [value or "" for value in _as_text(table[schema.names[place]]).to_pylist()]
            for column, place in places.items()
        }
    except UserError:
        raise
    except Exception as error:
        # Whatever broken bytes lead pyarrow to.
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"listing {url}: is neither CSV nor Parquet ({reason})") from error
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return enumerate(rows, 1)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _places(header: Sequence[str], url: str, needed: Sequence[str]) -> dict[str, int]:
    """Where the columns stand."""
    names = [_plain(name) for name in header]
    count = Counter(names)
    for column in COLUMNS:
        if count[column] > 1:
            raise UserError(f"listing {url}: has the column {column} {count[column]} times")
        if not count[column] and column in needed:
            there = shown(", ".join(names))[:200] or "none"
            raise UserError(
                f"listing {url}: lacks the column {column} (needs path, class, domain; split may "
                f"be there; found: {there})"
            )
    return {column: names.index(column) for column in COLUMNS if count[column]}


def _plain(name: str) -> str:
    return name.strip().lower()
