"""Reads the images of a piece: in parallel, each once, packed if asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from adu import storage
from adu.data.shards import ShardBuilder, save_shard
from adu.errors import UserError
from pipeline.ingestion.image_checks import Inspected, inspect_image, rejected
from pipeline.ingestion.pieces import READ_SCHEMA, Journal, Piece

if TYPE_CHECKING:
    from pipeline.ingestion.encoder import Encoder

MAX_FETCHES = 3
LOOKAHEAD = 4  # images under way for each thread

ListedRow = dict[str, Any]  # a row of `LISTED_SCHEMA`


@dataclass(frozen=True)
class ReadSettings:
    """How images are read.

    Attributes:
        out: The manifest's folder, for shards.
        threads: Images read at a time in a process.
        decoders: Images decoded at a time in a process.
        pack: Whether their bytes are packed into shards.
        short_side: Larger packed images are reduced to it; None leaves their bytes as they are.
        backbone: The model whose features of them are wanted; None for none.
    """

    out: str
    threads: int
    decoders: int
    pack: bool = False
    short_side: int | None = None
    backbone: str | None = None


class ImageReader:
    """Reads pieces in this process, with threads that several pieces may share.

    Args:
        settings: How.
        journal: Where what came of a piece is saved.

    Raises:
        UserError: If there is no such backbone.
    """

    def __init__(self, settings: ReadSettings, journal: Journal) -> None:
        self._settings, self._journal = settings, journal
        self._encoder: Encoder | None = None
        if settings.backbone is not None:
            from pipeline.ingestion.encoder import encoder_of  # torch takes seconds

            self._encoder = encoder_of(settings.backbone)
        self._threads = ThreadPoolExecutor(settings.threads)
        # Many threads wait for a store well, but would fight for the interpreter while they decode.
        self._core = threading.BoundedSemaphore(settings.decoders)

    def close(self) -> None:
        """Ends its threads."""
        self._threads.shutdown(cancel_futures=True)

    def read(self, piece: Piece) -> str:
        """Reads a piece and saves what came of it, its shard first; gives its part's name.

        Raises:
            UserError: If it cannot be saved.
        """
        builder = ShardBuilder()
        rows = []
        seen: list[tuple[dict[str, Any], np.ndarray]] = []
        for listed, inspected in self._in_order(piece.rows.to_pylist()):
            row = _read_row(listed, inspected)
            if inspected.data is not None:
                row["shard_row"] = builder.add(listed["image_id"], inspected.data)
            rows.append(row)
            if inspected.view is not None:
                seen.append((row, inspected.view))
            self._add_features(seen, whole=True)
        self._add_features(seen, whole=False)
        if builder.n_images:
            shard = save_shard(self._settings.out, piece.number, builder.finish())
            for row in rows:
                row["shard"] = shard if row["shard_row"] is not None else None
        return self._journal.add(piece, pa.Table.from_pylist(rows, schema=READ_SCHEMA))

    def _add_features(self, seen: list[tuple[dict[str, Any], np.ndarray]], whole: bool) -> None:
        """Adds features to rows, once they are a whole batch or no more will come."""
        if self._encoder is None or not seen or (whole and len(seen) < self._encoder.batch_size):
            return
        features = self._encoder.features([view for _, view in seen])
        for (row, _), feature in zip(seen, features, strict=True):
            row["feature"] = feature
        seen.clear()

    def _in_order(self, rows: list[ListedRow]) -> Iterator[tuple[ListedRow, Inspected]]:
        """Reads in parallel and gives in order, holding a few images for each thread."""
        under_way: deque[tuple[ListedRow, Future[Inspected]]] = deque()
        try:
            for row in rows:
                under_way.append((row, self._threads.submit(self._read, row)))
                if len(under_way) >= LOOKAHEAD * self._settings.threads:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()
        finally:
            for _, future in under_way:
                future.cancel()

    def _read(self, row: ListedRow) -> Inspected:
        try:
            data = storage.read_bytes(row["uri"])
            for attempt in range(1, MAX_FETCHES):
                if row["n_bytes"] in (None, len(data)):
                    break  # otherwise it may have been cut off on its way
                storage.pause(attempt)
                data = storage.read_bytes(row["uri"])
        except UserError as error:
            return rejected(UserError(f"image {row['image_id']}: {error}"), 0)
        settings = self._settings
        view = None if self._encoder is None else self._encoder.view
        with self._core:
            name, short_side = row["image_id"], settings.short_side
            return inspect_image(data, name, short_side, keep=settings.pack, view=view)


def _read_row(listed: ListedRow, inspected: Inspected) -> dict[str, Any]:
    return {
        **{name: listed[name] for name in ("image_id", "uri", "domain", "class", "split")},
        "width": inspected.width,
        "height": inspected.height,
        "bytes": inspected.n_bytes,
        "sha256": inspected.sha256,
        "source_sha256": inspected.source_sha256,
        "flags": list(inspected.flags) or None,
        "phash": inspected.phash,
        "warnings": list(inspected.warnings) or None,
        "problem": inspected.problem,
        "reason": inspected.reason,
        "shard": None,
        "shard_row": None,
        "feature": None,
    }
