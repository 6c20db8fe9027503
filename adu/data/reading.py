"""Fetches and decodes the images of a manifest: in parallel, checked, loose or out of shards.

Tensor names carry their shape: N images.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from adu import storage
from adu.data.decoded import ImageSet
from adu.data.images import cores, decode_image
from adu.data.manifest import Manifest
from adu.data.pixels import Pixels, pixels_in_memory
from adu.data.prefetch import ahead
from adu.data.preprocess import ImageTransform, view
from adu.data.shards import read_shard_images
from adu.data.uris import check_located, located
from adu.errors import UserError

# A file to which every read of an image is appended as "<unix time> <uri>": lets a test see when
# the test split is first touched.
READ_LOG_VARIABLE = "ADU_READ_LOG"

# Larger training images are reduced to this multiple of the model's size: random crops down to 8 %
# of the area still find more pixels than a resize of the whole would leave.
STORED_SIZE_FACTOR = 2

# Images that are looked at before a search starts.
N_CHECKED = 32

# How often an image is fetched that does not arrive as the manifest has it.
MAX_FETCHES = 4

# Images that one thread decodes in a row, and loose ones that it fetches in a row.
DECODED_TOGETHER = 8
FETCHED_TOGETHER = 2
# Encoded images that are waiting to be decoded, at most (and one job more).
AHEAD_BYTES = 64 * 2**20
# Of a shard fetched at once.
SHARD_PIECE_BYTES = 32 * 2**20

# What is asked of a manifest to read its images, and for so many streamed blocks at once.
COLUMNS = ("image_id", "class", "domain", "uri", "sha256", "bytes", "shard", "shard_row")
BLOCKS_TOGETHER = 64

Finish = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class _Job:
    """Images that are fetched together.

    Attributes:
        places: Their places among the wanted images.
        n_bytes: Their encoded size.
        shard: The shard that holds them; None if they are loose.
    """

    places: list[int]
    n_bytes: int
    shard: str | None = None


def read_images(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, finish: Finish, threads: int
) -> ImageSet:
    """Fetches and decodes images into memory.

    Args:
        manifest: The manifest that lists them.
        rows: Their row numbers.
        finish: What is kept of a decoded image.
        threads: Images fetched at a time.

    Raises:
        UserError: Naming an image that cannot be read or is not the one that was ingested.
    """
    table = manifest.columns(COLUMNS, rows)
    return _read_set(manifest, table, finish, threads)


def image_set(manifest: Manifest, rows: Sequence[int] | np.ndarray, pixels: Pixels) -> ImageSet:
    """Decoded images with what the manifest says of them."""
    return _set_of(manifest, manifest.columns(["image_id", "class", "domain"], rows), pixels)


def stream_views(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    transform: ImageTransform,
    block_size: int,
    threads: int,
) -> Iterator[ImageSet]:
    """Reads what evaluation sees of images block by block, holding two blocks at a time.

    Nothing is read before the first block is asked for.

    Args:
        manifest: The manifest that lists the images.
        rows: Their row numbers.
        transform: How the model wants them.
        block_size: Images in a block.
        threads: Images fetched at a time.
    """
    finish = viewed(transform)
    yield from ahead(
        _blocks_of(manifest, rows, block_size),
        lambda block: _read_set(manifest, block, finish, threads),
    )


def check_images(manifest: Manifest, n: int = N_CHECKED) -> None:
    """Sees whether some images, spread over the manifest, may be read; none of them is.

    Test images are read last, maybe after days of search: it is too late then to find that nobody
    may read them.

    Raises:
        UserError: Naming an image or shard that is not there or may not be read.
    """
    rows = np.unique(np.linspace(0, manifest.n_images - 1, n).astype(np.int64))
    check_located(manifest)
    columns = manifest.columns(["uri", "shard"], rows).to_pydict()
    urls = {
        uri if shard is None else storage.below(manifest.url, shard)
        for uri, shard in zip(columns["uri"], columns["shard"], strict=True)
    }
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(storage.check_readable, sorted(urls)))


def stored(max_short_side: int | None) -> Finish:
    """Keeps an image as it is, or reduced to a short side."""
    return lambda image: np.asarray(_reduced(image, max_short_side))


def viewed(transform: ImageTransform) -> Finish:
    """Keeps what evaluation sees of an image, at the model's size."""
    return lambda image: view(image, transform)


def decoded(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, threads: int, finish: Finish
) -> Iterator[tuple[int, np.ndarray]]:
    """Fetches and decodes images with bounded memory, whatever their number.

    Args:
        manifest: The manifest that lists them.
        rows: Their row numbers.
        threads: Fetches at a time.
        finish: What is kept of a decoded image.

    Yields:
        The place of an image in ``rows``, and its pixels as uint8, (height, width, channels).

    Raises:
        UserError: Naming an image that cannot be read or is not the one that was ingested.
    """
    yield from _decoded(manifest, manifest.columns(COLUMNS, rows), threads, finish)


def _blocks_of(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, block_size: int
) -> Iterator[pa.Table]:
    """What the manifest says of images, a block at a time.

    It is looked up for many blocks together: each time, whole row groups are read.
    """
    together = block_size * BLOCKS_TOGETHER
    for start in range(0, len(rows), together):
        table = manifest.columns(COLUMNS, rows[start : start + together])
        for first in range(0, table.num_rows, block_size):
            yield table.slice(first, block_size)


def _read_set(manifest: Manifest, rows: pa.Table, finish: Finish, threads: int) -> ImageSet:
    images = _decoded(manifest, rows, threads, finish)
    return _set_of(manifest, rows, pixels_in_memory(images, rows.num_rows))


def _set_of(manifest: Manifest, rows: pa.Table, pixels: Pixels) -> ImageSet:
    classes, domains = (manifest.numbers(column, rows) for column in ("class", "domain"))
    return ImageSet(pixels, rows["image_id"].to_pylist(), classes, domains)


def _decoded(
    manifest: Manifest, rows: pa.Table, threads: int, finish: Finish
) -> Iterator[tuple[int, np.ndarray]]:
    table = rows.to_pydict()
    table["uri"] = located(manifest, table["uri"], table["shard"])

    def fetch(job: _Job) -> list[bytes]:
        uris = [table["uri"][place] for place in job.places]
        hashes = [table["sha256"][place] for place in job.places]
        if job.shard is None:
            return [_fetch_checked(uri, its) for uri, its in zip(uris, hashes, strict=True)]
        shard_rows = [table["shard_row"][place] for place in job.places]
        return _fetch_shard(manifest.url, job.shard, shard_rows, uris, hashes)

    def decode(places: Sequence[int], images: Sequence[bytes]) -> list[tuple[int, np.ndarray]]:
        names = [table["uri"][place] for place in places]
        return [
            (place, finish(decode_image(data, name)))
            for place, data, name in zip(places, images, names, strict=True)
        ]

    jobs = deque(_jobs(table))
    fetching: deque[tuple[_Job, Future[list[bytes]]]] = deque()
    decoding: deque[Future[list[tuple[int, np.ndarray]]]] = deque()
    n_decoders = cores()
    with ThreadPoolExecutor(threads) as fetchers, ThreadPoolExecutor(n_decoders) as decoders:
        try:
            while jobs or fetching or decoding:
                while jobs and (not fetching or _may_fetch_more(fetching, threads)):
                    fetching.append((jobs[0], fetchers.submit(fetch, jobs.popleft())))
                # Enough at work to keep every core busy; the oldest is awaited.
                if fetching and len(decoding) <= 2 * n_decoders:
                    job, future = fetching.popleft()
                    images = future.result()
                    for start in range(0, len(images), DECODED_TOGETHER):
                        part = slice(start, start + DECODED_TOGETHER)
                        decoding.append(decoders.submit(decode, job.places[part], images[part]))
                else:
                    yield from decoding.popleft().result()
        finally:
            for _, future in fetching:
                future.cancel()
            for waiting in decoding:
                waiting.cancel()


def _jobs(table: dict[str, list[Any]]) -> list[_Job]:
    """Shares wanted images out over fetches: shards in pieces, loose images by a few."""
    loose = [place for place, shard in enumerate(table["shard"]) if shard is None]
    shards: dict[str, list[int]] = {}
    for place, shard in enumerate(table["shard"]):
        if shard is not None:
            shards.setdefault(shard, []).append(place)
    sizes = table["bytes"]
    jobs = []
    for start in range(0, len(loose), FETCHED_TOGETHER):
        places = loose[start : start + FETCHED_TOGETHER]
        jobs.append(_Job(places, sum(sizes[place] for place in places)))
    for shard, members in shards.items():
        ordered = sorted(members, key=lambda place: table["shard_row"][place])
        piece: list[int] = []
        n_bytes = 0
        for place in ordered:
            piece.append(place)
            n_bytes += sizes[place]
            if n_bytes >= SHARD_PIECE_BYTES:
                jobs.append(_Job(piece, n_bytes, shard))
                piece, n_bytes = [], 0
        if piece:
            jobs.append(_Job(piece, n_bytes, shard))
    return jobs


def _may_fetch_more(fetching: deque[tuple[_Job, Future[list[bytes]]]], threads: int) -> bool:
    waiting_bytes = sum(job.n_bytes for job, _ in fetching)
    return len(fetching) < 2 * threads and waiting_bytes < AHEAD_BYTES


def _fetch_checked(uri: str, sha256: str) -> bytes:
    """Fetches a loose image, again if it does not arrive as it was ingested."""
    for attempt in range(1, MAX_FETCHES + 1):
        _log_read(uri)
        data = storage.read_bytes(uri)
        if _is_whole(data, sha256):
            return data
        _pause_or_give_up(uri, uri, attempt)
    raise AssertionError


def _fetch_shard(
    manifest_url: str, shard: str, shard_rows: list[int], uris: list[str], hashes: list[str]
) -> list[bytes]:
    for attempt in range(1, MAX_FETCHES + 1):
        for uri in uris:
            _log_read(uri)
        images = read_shard_images(manifest_url, shard, shard_rows)
        wrong = [
            uri
            for uri, data, sha256 in zip(uris, images, hashes, strict=True)
            if not _is_whole(data, sha256)
        ]
        if not wrong:
            return images
        _pause_or_give_up(wrong[0], manifest_url, attempt)
    raise AssertionError


def _is_whole(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256


def _pause_or_give_up(image: str, place: str, attempt: int) -> None:
    """What breaks on its way may arrive whole next time; a file of this machine will not."""
    if storage.is_local(place) or attempt == MAX_FETCHES:
        raise UserError(f"image {image}: has changed since the manifest was written")
    storage.pause(attempt)


def _log_read(uri: str) -> None:
    log = os.environ.get(READ_LOG_VARIABLE)
    if log:
        with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123 - appended to by many
            file.write(f"{time.time()} {uri}\n")


def _reduced(image: Image.Image, max_short_side: int | None) -> Image.Image:
    short = min(image.size)
    if max_short_side is None or short <= max_short_side:
        return image
    factor = max_short_side / short
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)
