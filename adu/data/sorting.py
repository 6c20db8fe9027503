"""Sorts more rows than memory holds: sorted runs in files, merged block by block."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import pyarrow as pa

# In memory while runs are written; and of each run while they are merged.
ROWS_OF_RUN = 2**19
ROWS_OF_BLOCK = 2**13


class RowSorter:
    """Takes rows in any order and gives them ordered by a column of text.

    Runs lie in a folder for temporary files until it is closed. Few rows never touch the disk.

    Args:
        key: The column; as text is ordered by its UTF-8 bytes, which is Python's order too.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._runs: list[Path] = []
        self._numbers = count()
        self._pending: list[pa.Table] = []
        self._n_pending = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RowSorter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes its runs."""
        if self._folder is not None:
            self._folder.cleanup()
        self._runs, self._pending = [], []

    def add(self, table: pa.Table) -> None:
        """Takes some rows, all with the same columns."""
        self._pending.append(table)
        self._n_pending += table.num_rows
        if self._n_pending >= ROWS_OF_RUN:
            self._save_pending()

    def ordered(self, *, again: bool = False) -> Iterator[pa.Table]:
        """All rows in order, some at a time; may be asked for again.

        Args:
            again: Whether they will be: then they are merged into one run, once.
        """
        if not self._runs:
            if self._pending:
                yield self._in_order(self._pending)
            return
        if self._pending:
            self._save_pending()
        if again and len(self._runs) > 1:
            parts, self._runs = self._runs, [self._written(self._merged())]
            for file in parts:
                file.unlink()
        yield from self._merged()

    def _merged(self) -> Iterator[pa.Table]:
        runs = [_Run(file, self._key) for file in self._runs]
        while runs:
            # Up to here no block that is still to come can hold a row.
            bound = min(run.last for run in runs)
            blocks = [run.take_to(bound) for run in runs]
            yield self._in_order(blocks) if len(blocks) > 1 else blocks[0]
            runs = [run for run in runs if run.has_rows]

    def _save_pending(self) -> None:
        self._runs.append(self._written(iter([self._in_order(self._pending)])))
        self._pending, self._n_pending = [], 0

    def _written(self, blocks: Iterator[pa.Table]) -> Path:
        """Writes a run."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="adu-sort-")
        file = Path(self._folder.name) / f"{next(self._numbers)}.arrow"
        first = next(blocks)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(file, first.schema, options=options) as writer:
            for block in chain([first], blocks):
                writer.write_table(block, max_chunksize=ROWS_OF_BLOCK)
        return file

    def _in_order(self, tables: list[pa.Table]) -> pa.Table:
        return pa.concat_tables(tables).sort_by(self._key).combine_chunks()


class _Run:
    """A sorted run of which one block at a time is in memory."""

    def __init__(self, file: Path, key: str) -> None:
        # Not as a memory map, which would count as this process' memory, all of it in the end.
        self._reader = pa.ipc.open_file(pa.OSFile(str(file)))
        self._key = key
        self._next = 0
        self._block: pa.Table = None
        self.last = ""
        self._load()

    @property
    def has_rows(self) -> bool:
        """Whether anything is left of it."""
        return self._block.num_rows > 0

    def take_to(self, bound: str) -> pa.Table:
        """Takes the block's rows up to a key."""
        keys = self._block[self._key]
        n = bisect_right(range(self._block.num_rows), bound, key=lambda row: keys[row].as_py())
        taken, self._block = self._block.slice(0, n), self._block.slice(n)
        if not self._block.num_rows and self._next < self._reader.num_record_batches:
            self._load()
        return taken

    def _load(self) -> None:
        # Contiguous, so that a key is found at once.
        self._block = pa.Table.from_batches([self._reader.get_batch(self._next)])
        self._next += 1
        self.last = self._block[self._key][-1].as_py()
