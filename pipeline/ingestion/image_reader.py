"""Reads all images of a data set once: in parallel, in order, packed if asked, and resumed.

What has been read is saved every few seconds in a journal beside the output, so that an ingest that
was killed goes on where it was. With shards, a shard and the part of the journal that speaks of its
images are saved together.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adu import storage
from adu.data.images import cores
from adu.data.shards import ShardBuilder, save_shard
from adu.errors import UserError
from pipeline.ingestion.image_checks import (
    Inspected,
    collected_warnings,
    inspect_image,
    rejected,
)
from pipeline.ingestion.layouts import Found

JOURNAL_PREFIX = ".unfinished-"
PART_SUFFIX = ".parquet"
PART = re.compile(r"[0-9]{6,}\.parquet")
MAX_FETCHES = 3
LOOKAHEAD = 4  # images under way for each thread

READ_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("source_sha256", pa.string()),
        ("source_bytes", pa.int64()),
        ("flags", pa.list_(pa.string())),
        ("phash", pa.uint64()),
        ("warnings", pa.list_(pa.string())),
        ("problem", pa.string()),
        ("reason", pa.string()),
        ("shard", pa.string()),
        ("shard_row", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        short_side: Larger images are reduced to it; None leaves their bytes as they are.
        shard_bytes: A shard is finished when it holds so many.
    """

    short_side: int | None
    shard_bytes: int


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
        self._n_parts = 0

    def load(self) -> list[pa.Table]:
        """The parts that are there, in the order in which they were saved, up to a broken one."""
        parts = []
        for name in sorted(storage.names_in(self._folder)):
            if not PART.fullmatch(name):
                continue
            data = storage.read_bytes(storage.join(self._folder, name))
            try:
                parts.append(pq.read_table(io.BytesIO(data), schema=READ_SCHEMA))
            except (pa.ArrowException, OSError, ValueError):
                break  # what it spoke of is read again, and its place is written anew
            self._n_parts = int(name.removesuffix(PART_SUFFIX)) + 1
        return parts

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Saves what came of some more images."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=READ_SCHEMA), buffer)
        name = f"{self._n_parts:06}{PART_SUFFIX}"
        storage.write_bytes(storage.join(self._folder, name), buffer.getvalue())
        self._n_parts += 1

    def remove(self) -> None:
        """Removes this journal and those of other ingests to the same place that were given up."""
        for name in storage.names_in(self._out):
            if name.startswith(JOURNAL_PREFIX):
                storage.remove(storage.join(self._out, name), recursive=True)


@dataclass(frozen=True)
class ReadSettings:
    """How images are read.

    Attributes:
        out: The manifest's folder, for shards.
        threads: Images read at a time.
        packing: How they are packed; None: not at all.
        save_every_s: Seconds between two savings, without packing.
        strict: With packing: whether shards are packed again from the first one on from which an
            image was left out, because its image may have been mended. Without packing, such
            images are always read again.
    """

    out: str
    threads: int
    packing: Packing | None = None
    save_every_s: float = 10.0
    strict: bool = False


Show = Callable[[int], None]


def read_all(
    images: Sequence[Found], settings: ReadSettings, journal: Journal, start: Show, advance: Show
) -> pa.Table:
    """Reads images, or what is left of them.

    Args:
        images: All of them.
        settings: How they are read.
        journal: What was read before, and where to save what is read now.
        start: Told how many images have been read before.
        advance: Told of every further image, that one more is read.

    Returns:
        A row an image with the columns of `READ_SCHEMA`, in no particular order.
    """
    kept = _still_good(journal.load(), images, settings)
    known = set(kept["image_id"].to_pylist())
    todo = [image for image in images if image.image_id not in known]
    start(len(known))
    with (
        collected_warnings(),
        ThreadPoolExecutor(settings.threads) as pool,
        ThreadPoolExecutor(1) as saver,
    ):
        results = _in_order(pool, packing_order(todo) if settings.packing else todo, settings)
        seen = _told(results, advance)
        if settings.packing:
            n_shards = len(pc.unique(kept["shard"]).drop_null())
            parts = _packed(seen, settings, journal, n_shards, saver)
        else:
            parts = _loose(seen, settings, journal)
        tables = [pa.Table.from_pylist(rows, schema=READ_SCHEMA) for rows in parts]
    return pa.concat_tables([kept, *tables])


def packing_order(images: Iterable[Found]) -> list[Found]:
    """The order in shards: what is read together, a whole test split say, lies together."""
    return sorted(images, key=lambda image: (image.split or "", image.image_id))


def _still_good(
    parts: Sequence[pa.Table], images: Sequence[Found], settings: ReadSettings
) -> pa.Table:
    """What of an earlier, killed ingest can be kept.

    Without packing, that is every image that could be used and has not changed its size. Packed
    shards depend on the images before them, so with packing it is all before the first change.
    """
    sizes = {image.image_id: image.n_bytes for image in images}
    good = [READ_SCHEMA.empty_table()]
    for part in parts:
        unchanged = [
            image_id in sizes and sizes[image_id] in (None, n_bytes)
            for image_id, n_bytes in zip(
                part["image_id"].to_pylist(), part["source_bytes"].to_pylist(), strict=True
            )
        ]
        usable = pc.is_null(part["problem"]).to_pylist()
        if settings.packing is None:
            both = [u and v for u, v in zip(unchanged, usable, strict=True)]
            good.append(part.filter(pa.array(both, pa.bool_())))
        elif all(unchanged) and (all(usable) or not settings.strict):
            good.append(part)
        else:
            break
    return pa.concat_tables(good)


def _in_order(
    pool: ThreadPoolExecutor, images: Sequence[Found], settings: ReadSettings
) -> Iterator[tuple[Found, Inspected]]:
    """Reads in parallel and gives in order, holding a few images for each thread."""
    # Many threads wait for a store well, but would fight for the interpreter while they decode.
    core = threading.BoundedSemaphore(cores())
    under_way: deque[tuple[Found, Future[Inspected]]] = deque()
    try:
        for image in images:
            under_way.append((image, pool.submit(_read, image, settings.packing, core)))
            if len(under_way) >= LOOKAHEAD * settings.threads:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()


def _read(
    image: Found, packing: Packing | None, core: contextlib.AbstractContextManager[Any]
) -> Inspected:
    try:
        data = storage.read_bytes(image.uri)
        for attempt in range(1, MAX_FETCHES):
            if image.n_bytes in (None, len(data)):
                break  # otherwise it may have been cut off on its way
            storage.pause(attempt)
            data = storage.read_bytes(image.uri)
    except UserError as error:
        return rejected(UserError(f"image {image.image_id}: {error}"), 0)
    short_side = packing.short_side if packing else None
    with core:
        return inspect_image(data, image.image_id, short_side, keep=packing is not None)


def _told(
    results: Iterator[tuple[Found, Inspected]], advance: Show
) -> Iterator[tuple[Found, Inspected]]:
    for image, inspected in results:
        yield image, inspected
        advance(1)


def _loose(
    results: Iterator[tuple[Found, Inspected]], settings: ReadSettings, journal: Journal
) -> Iterator[list[dict[str, Any]]]:
    """Saves and gives what was read, every few seconds and when it ends, be it by Ctrl-C."""
    rows: list[dict[str, Any]] = []
    saved_at = time.monotonic()
    try:
        for image, inspected in results:
            rows.append(_row(image, inspected))
            if time.monotonic() - saved_at >= settings.save_every_s:
                full, rows, saved_at = rows, [], time.monotonic()
                journal.add(full)
                yield full
    except BaseException:
        if rows:
            journal.add(rows)
        raise
    if rows:
        yield rows


def _packed(
    results: Iterator[tuple[Found, Inspected]],
    settings: ReadSettings,
    journal: Journal,
    n_shards: int,
    saver: ThreadPoolExecutor,
) -> Iterator[list[dict[str, Any]]]:
    """Packs shards, saving one while the next one fills."""
    assert settings.packing is not None
    builder, rows = ShardBuilder(), []
    pending: Future[list[dict[str, Any]]] | None = None

    def save(number: int, full: ShardBuilder, its: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shard = save_shard(settings.out, number, full.finish()) if full.n_images else None
        for row in its:
            row["shard"] = shard if row["shard_row"] is not None else None
        journal.add(its)
        return its

    for image, inspected in results:
        row = _row(image, inspected)
        if inspected.data is not None:
            row["shard_row"] = builder.add(image.image_id, inspected.data)
        rows.append(row)
        if builder.n_bytes >= settings.packing.shard_bytes:
            if pending:
                yield pending.result()
            pending = saver.submit(save, n_shards, builder, rows)
            builder, rows, n_shards = ShardBuilder(), [], n_shards + 1
    if pending:
        yield pending.result()
    if rows:
        yield save(n_shards, builder, rows)


def _row(image: Found, inspected: Inspected) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "width": inspected.width,
        "height": inspected.height,
        "bytes": inspected.n_bytes,
        "sha256": inspected.sha256,
        "source_sha256": inspected.source_sha256,
        "source_bytes": inspected.source_bytes,
        "flags": list(inspected.flags) or None,
        "phash": inspected.phash,
        "warnings": list(inspected.warnings) or None,
        "problem": inspected.problem,
        "reason": inspected.reason,
        "shard": None,
        "shard_row": None,
    }
