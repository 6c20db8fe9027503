"""Images are read in pieces: some hundred or thousand that are read, checked and saved together.

A piece is whole or not there. What came of it is a Parquet file in a journal beside the output,
named after what the piece holds, so that an ingest that was killed goes on with those that are not
there, wherever they were read. With packing, a piece is a shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adu import storage
from adu.data.rows import row_indices
from pipeline.ingestion.listing import LISTED_SCHEMA

JOURNAL_PREFIX = ".unfinished-"
PART = re.compile(r"([0-9a-f]{24})-([0-9]+)\.parquet")

FEWEST_IMAGES, MOST_IMAGES = 64, 4096
# So many pieces are aimed at.
N_PIECES = 1024
# No piece is longer than so many times what is aimed at.
LONGEST = 4
# What an image is taken for whose size no listing tells.
GUESSED_BYTES = 2**17

READ_SCHEMA = pa.schema(
    [
        *(LISTED_SCHEMA.field(name) for name in ("image_id", "uri", "domain", "class", "split")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("source_sha256", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("phash", pa.uint64()),
        ("warnings", pa.list_(pa.string())),
        ("problem", pa.string()),
        ("reason", pa.string()),
        ("shard", pa.string()),
        ("shard_row", pa.int32()),
        ("feature", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Piece:
    """Images that are read together.

    Attributes:
        number: Its place among the pieces.
        rows: The images, with the columns of `LISTED_SCHEMA`.
    """

    number: int
    rows: pa.Table

    @cached_property
    def key(self) -> str:
        """Tells it from every other piece: any change of its images, or of their sizes."""
        text = json.dumps([self.rows[name].to_pylist() for name in self.rows.column_names])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class Journal:
    """What an ingest has read so far, beside its output.

    Args:
        out: The manifest's folder or URL.
        identity: What the ingest does; another one has a journal of its own.
    """

    def __init__(self, out: str, identity: dict[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        self._out = out
        self._folder = storage.join(out, f"{JOURNAL_PREFIX}{key}")

    def known(self, again: bool) -> dict[str, str]:
        """Names of the parts that are there, by the keys of their pieces.

        Args:
            again: Whether to leave out those with images that could not be used.
        """
        matches = map(PART.fullmatch, storage.names_in(self._folder))
        return {
            match[1]: match[0]
            for match in matches
            if match and not (again and int(match[2])) and self._is_whole(match[0])
        }

    def add(self, piece: Piece, table: pa.Table) -> str:
        """Saves what came of a piece; gives the part's name."""
        n_unusable = table.num_rows - table["problem"].null_count
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        name = f"{piece.key}-{n_unusable}.parquet"
        storage.write_bytes(storage.join(self._folder, name), buffer.getvalue())
        return name

    def read(self, name: str) -> pa.Table:
        """What came of a piece."""
        data = storage.read_bytes(storage.join(self._folder, name))
        return pq.read_table(io.BytesIO(data), schema=READ_SCHEMA)

    def remove(self) -> None:
        """Removes this journal and those of other ingests to the same place that were given up."""
        for name in storage.names_in(self._out):
            if name.startswith(JOURNAL_PREFIX):
                storage.remove(storage.join(self._out, name), recursive=True)

    def _is_whole(self, name: str) -> bool:
        try:
            self.read(name)
        except (pa.ArrowException, OSError, ValueError):
            return False  # it is read again
        return True


def piece_images(n_images: int) -> int:
    """Images that a piece should hold, about."""
    return min(max(n_images // N_PIECES, FEWEST_IMAGES), MOST_IMAGES)


def loose_pieces(blocks: Iterable[pa.Table], n_together: int) -> Iterator[Piece]:
    """Cuts images into pieces by their names alone: one more image changes one piece."""
    ends = _Ends(n_together)
    return _cut(blocks, ends.of_names)


def packed_pieces(blocks: Iterable[pa.Table], shard_bytes: int) -> Iterator[Piece]:
    """Cuts images into pieces that fill a shard each, as they lie in the source."""
    ends = _Ends(shard_bytes)
    return _cut(blocks, ends.of_sizes)


class _Ends:
    """Finds behind which images a piece ends, over blocks."""

    def __init__(self, enough: int) -> None:
        self._enough, self._so_far = enough, 0

    def of_names(self, block: pa.Table) -> list[int]:
        ends = []
        for row, name in enumerate(block["image_id"].cast(pa.binary()).to_pylist()):
            self._so_far += 1
            chosen = zlib.crc32(name) % self._enough == 0
            if chosen or self._so_far >= LONGEST * self._enough:
                ends.append(row + 1)
                self._so_far = 0
        return ends

    def of_sizes(self, block: pa.Table) -> list[int]:
        ends = []
        for row, n_bytes in enumerate(block["n_bytes"].to_pylist()):
            self._so_far += GUESSED_BYTES if n_bytes is None else n_bytes
            if self._so_far >= self._enough:
                ends.append(row + 1)
                self._so_far = 0
        return ends


def _cut(blocks: Iterable[pa.Table], ends_in: Any) -> Iterator[Piece]:
    pending: list[pa.Table] = []
    number = 0
    for block in blocks:
        start = 0
        for end in ends_in(block):
            yield Piece(number, _together([*pending, block.slice(start, end - start)]))
            pending, start, number = [], end, number + 1
        if start < block.num_rows:
            pending.append(block.slice(start))
    if pending:
        yield Piece(number, _together(pending))


def _together(tables: list[pa.Table]) -> pa.Table:
    # A copy: a slice would be sent with the whole block that it is of.
    whole = pa.concat_tables(tables)
    return whole.take(row_indices(np.arange(whole.num_rows))).combine_chunks()
