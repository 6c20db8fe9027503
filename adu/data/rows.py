"""The rows of a manifest: Parquet files of which only the columns that are asked for are loaded.

A few-shot split of a million images needs their ids, domains, classes and splits, but neither where
they lie nor their hashes. So columns are read one by one, row group by row group.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adu import storage
from adu.errors import UserError

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("domain", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("flags", pa.list_(pa.string())),  # quality flags, null where there are none
        ("shard", pa.string()),  # relative to the manifest's folder, null where the image is loose
        ("shard_row", pa.int32()),
    ]
)
# Version 1 of the schema lacks the last three; they are read as null. The others are never null.
REQUIRED = tuple(SCHEMA.names[: SCHEMA.names.index("flags")])

# Few values for many rows: Parquet stores them as numbers into a dictionary.
NAME_COLUMNS = ("domain", "class", "split", "shard")

ROW_FOLDER = "rows"
ROWS_OF_FILE = 2**20
ROWS_OF_GROUP = 2**16
# Smaller files are fetched whole: one request instead of several.
WHOLE_FILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RowFile:
    """One of a manifest's Parquet files."""

    url: str
    n_bytes: int
    content: bytes | None
    metadata: pq.FileMetaData

    def open(self) -> pq.ParquetFile:
        """Opens it; nothing is fetched but what is then read."""
        if self.content is not None:
            source: Any = io.BytesIO(self.content)
        elif storage.is_local(self.url):
            source = storage.local_path(self.url)
        else:
            source = storage.RangeFile(self.url, self.n_bytes)
        have = self.metadata.schema.to_arrow_schema().names
        names = [name for name in NAME_COLUMNS if name in have]
        return pq.ParquetFile(
            source, metadata=self.metadata, read_dictionary=names, pre_buffer=False
        )


class RowTable:
    """All rows of a manifest, ordered by image id.

    Args:
        url: The folder or URL in which its Parquet files lie.
        paths: The files, relative to it. They are opened when something is asked for.
    """

    def __init__(self, url: str, paths: Sequence[str]) -> None:
        self._url, self._paths = url, tuple(paths)

    @cached_property
    def files(self) -> tuple[RowFile, ...]:
        """The opened files.

        Raises:
            UserError: If one cannot be read or is none.
        """
        return tuple(_open_file(storage.below(self._url, path)) for path in self._paths)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(file.metadata.num_rows for file in self.files)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows."""
        return _joined([group for _, group in self.groups(names)], names)

    def take(self, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Some columns of some rows, in the order asked; holds one row group at a time."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        parts = []
        for first, n_rows, read in self._group_readers(names):
            low, high = np.searchsorted(ordered, [first, first + n_rows])
            if high > low:
                parts.append(read().take(row_indices(ordered[low:high] - first)))
        places = np.empty(len(rows), np.int64)
        places[order] = np.arange(len(rows))
        return _joined(parts, names).combine_chunks().take(row_indices(places))

    def groups(self, names: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Some columns, row group by row group, each with the number of its first row."""
        for first, _, read in self._group_readers(names):
            yield first, read()

    def numbered_groups(
        self, values: Mapping[str, Sequence[str]], also: Sequence[str] = ()
    ) -> Iterator[tuple[int, list[np.ndarray], pa.Table]]:
        """Name columns as numbers, row group by row group.

        Args:
            values: The known names of each column, of `NAME_COLUMNS`.
            also: Further columns.

        Yields:
            The number of the first row; for each column the places of the rows' names among the
            known ones, -1 where it is none of them; a table of the further columns.
        """
        numbers = {name: {value: i for i, value in enumerate(values[name])} for name in values}
        first = 0
        for file in self.files:
            with file.open() as parquet:
                start = first
                for group in range(file.metadata.num_row_groups):
                    with _told_as_broken(file.url):
                        table = parquet.read_row_group(group, columns=[*values, *also])
                        table.validate(full=True)
                    _check_no_nulls(file.url, table, first - start)
                    columns = [_numbers_of(table[name], numbers[name]) for name in values]
                    yield first, columns, table.select(list(also))
                    first += table.num_rows

    def _group_readers(self, names: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
        first = 0
        for file in self.files:
            with file.open() as parquet:
                start = first
                for group in range(file.metadata.num_row_groups):
                    n_rows = file.metadata.row_group(group).num_rows
                    of_group = (parquet, file, group, names, first - start)
                    yield first, n_rows, lambda arguments=of_group: _read(*arguments)
                    first += n_rows


class RowFiles:
    """Writes rows in the order in which they come, into files of `ROWS_OF_FILE` rows.

    Files are named after their content: those of a manifest that is replaced stay untouched.

    Args:
        url: The manifest's folder or URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._paths: list[str] = []
        self._pending: list[pa.Table] = []
        self._n_pending = 0

    def add(self, table: pa.Table) -> None:
        """Takes some rows with the columns of `SCHEMA`.

        Raises:
            UserError: If the folder cannot be written.
        """
        self._pending.append(table)
        self._n_pending += table.num_rows
        if self._n_pending < ROWS_OF_FILE:
            return
        whole = pa.concat_tables(self._pending)
        n_full = whole.num_rows - whole.num_rows % ROWS_OF_FILE
        for start in range(0, n_full, ROWS_OF_FILE):
            self._write(whole.slice(start, ROWS_OF_FILE))
        self._pending, self._n_pending = [whole.slice(n_full)], whole.num_rows - n_full

    def finish(self) -> list[str]:
        """Writes what is left; the files' paths relative to the manifest's folder."""
        if self._n_pending:
            self._write(pa.concat_tables(self._pending))
        return self._paths

    def _write(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        options = {"compression": "zstd", "use_dictionary": list(NAME_COLUMNS)}
        with pq.ParquetWriter(buffer, table.schema, **options) as writer:
            for start in range(0, table.num_rows, ROWS_OF_GROUP):
                # In one piece: where it is cut would show in the bytes.
                writer.write_table(table.slice(start, ROWS_OF_GROUP).combine_chunks())
        data = buffer.getvalue()
        name = f"{len(self._paths):05}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
        path = f"{ROW_FOLDER}/{name}"
        storage.write_bytes(storage.join(self._url, path), data)
        self._paths.append(path)


def _open_file(url: str) -> RowFile:
    n_bytes = storage.size_bytes(url)
    content = storage.read_bytes(url) if n_bytes <= WHOLE_FILE_BYTES else None
    with _told_as_broken(url):
        source: Any = storage.RangeFile(url, n_bytes) if content is None else io.BytesIO(content)
        metadata = pq.read_metadata(source)
        _check_columns(url, metadata.schema.to_arrow_schema())
    return RowFile(url, n_bytes, content, metadata)


def _check_columns(url: str, schema: pa.Schema) -> None:
    for column in SCHEMA:
        if column.name not in schema.names:
            if column.name in REQUIRED:
                raise UserError(f"manifest file {url}: lacks the column {column.name}")
            continue
        if schema.names.count(column.name) > 1:
            raise UserError(f"manifest file {url}: has the column {column.name} twice")
        found = schema.field(column.name).type
        if not _reads_as(found, column.type):
            raise UserError(
                f"manifest file {url}: column {column.name} holds {found} (allowed: {column.type})"
            )


def _reads_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type can be taken as another's."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(found)
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    return pa.types.is_null(found) or (is_list and _reads_as(found.value_type, wanted.value_type))


def _check_no_nulls(url: str, table: pa.Table, first: int) -> None:
    """Checks that nothing is missing in rows of a file, of which ``first`` is the first."""
    for name in table.column_names:
        if name in REQUIRED and table[name].null_count:
            row = first + table[name].is_null().index(True).as_py()
            raise UserError(f"manifest file {url}: column {name} is empty in row {row}, from 0")
    if {"shard", "shard_row"} <= set(table.column_names):
        nowhere = pc.and_(table["shard"].is_valid(), table["shard_row"].is_null())
        row = nowhere.index(True).as_py()
        if row >= 0:
            raise UserError(
                f"manifest file {url}: column shard_row is empty in row {first + row}, from 0, "
                "which has a shard"
            )


def _read(
    parquet: pq.ParquetFile, file: RowFile, group: int, names: Sequence[str], first: int
) -> pa.Table:
    have = [name for name in names if name in parquet.schema_arrow.names]
    n_rows = file.metadata.row_group(group).num_rows
    with _told_as_broken(file.url):
        table = parquet.read_row_group(group, columns=have)
        table.validate(full=True)  # of text: that it is UTF-8
        columns = [
            table[name].cast(SCHEMA.field(name).type)
            if name in have
            else pa.nulls(n_rows, SCHEMA.field(name).type)
            for name in names
        ]
    _check_no_nulls(file.url, table, first)
    return pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in names]))


def _joined(tables: Sequence[pa.Table], names: Sequence[str]) -> pa.Table:
    if tables:
        return pa.concat_tables(tables)
    return pa.schema([SCHEMA.field(name) for name in names]).empty_table()


def _numbers_of(column: pa.ChunkedArray, numbers: Mapping[str, int]) -> np.ndarray:
    parts = [np.empty(0, np.int32)]
    for chunk in column.chunks:
        known = [numbers.get(entry, -1) for entry in chunk.dictionary.to_pylist()]
        if known:
            parts.append(np.array(known, np.int32)[np.from_dlpack(chunk.indices)])
    return np.concatenate(parts)


def row_indices(rows: np.ndarray) -> pa.Array:
    """Row numbers for pyarrow. `pa.array` and ``to_numpy`` would import pandas, for a second."""
    values = np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


@contextmanager
def _told_as_broken(url: str) -> Iterator[None]:
    """Tells in one line whatever broken bytes lead pyarrow to."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"manifest file {url}: is broken ({reason})") from error
