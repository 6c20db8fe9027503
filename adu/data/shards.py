"""Shards: encoded images side by side in Parquet files, a few hundred objects for a million images.

A shard has the columns ``image_id`` and ``image``, in row groups of a few MB, uncompressed (encoded
images do not get smaller). Whoever wants some of its images fetches the footer and their row
groups, not the whole shard. The same images in the same order give the same bytes and, since a
shard is named after its content, the same name: a shard is never changed, only replaced.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adu import storage
from adu.errors import UserError

SHARD_FOLDER = "images"
SHARD_SCHEMA = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
ROW_GROUP_BYTES = 4 * 2**20


class ShardBuilder:
    """Collects images for one shard, in memory."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._file,
            SHARD_SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )
        self._image_ids: list[str] = []
        self._images: list[bytes] = []
        self._pending_bytes = 0
        self.n_images = 0

    @property
    def n_bytes(self) -> int:
        """Size of what was added so far."""
        return self._file.tell() + self._pending_bytes

    def add(self, image_id: str, image: bytes) -> int:
        """Appends an image and returns its row in the shard."""
        self._image_ids.append(image_id)
        self._images.append(image)
        self._pending_bytes += len(image)
        self.n_images += 1
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()
        return self.n_images - 1

    def finish(self) -> bytes:
        """The shard as a file; nothing can be added any more."""
        self._flush()
        self._writer.close()
        return self._file.getvalue()

    def _flush(self) -> None:
        if not self._images:
            return
        columns = [pa.array(self._image_ids), pa.array(self._images, pa.binary())]
        group = pa.Table.from_arrays(columns, schema=SHARD_SCHEMA)
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._image_ids, self._images, self._pending_bytes = [], [], 0


def write_shard(manifest_url: str, number: int, images: Iterable[tuple[str, bytes]]) -> str:
    """Writes a shard of (image id, encoded image) into a manifest's folder.

    Args:
        manifest_url: Folder or URL of the manifest.
        number: Place of the shard among the manifest's.
        images: What it holds, in order.

    Returns:
        The shard's path relative to the manifest's folder.

    Raises:
        UserError: If it cannot be written.
    """
    builder = ShardBuilder()
    for image_id, image in images:
        builder.add(image_id, image)
    return save_shard(manifest_url, number, builder.finish())


def save_shard(manifest_url: str, number: int, data: bytes) -> str:
    """Writes a finished shard; see `write_shard`."""
    shard = f"{SHARD_FOLDER}/{number:05}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
    storage.write_bytes(storage.join(manifest_url, shard), data)
    return shard


def read_shard_images(
    manifest_url: str, shard: str, rows: Sequence[int] | np.ndarray
) -> list[bytes]:
    """Reads some images of a shard, fetching their row groups only.

    Args:
        manifest_url: Folder or URL of the manifest.
        shard: The shard's path relative to it, as the manifest's column ``shard`` has it.
        rows: Rows in the shard, in any order, also more than once.

    Returns:
        The encoded images, in the order of ``rows``.

    Raises:
        UserError: If the shard is missing, broken or has no such row.
    """
    url = storage.below(manifest_url, shard)
    try:
        wanted = np.asarray(rows, dtype=np.int64)
        with storage.RangeFile(url) as file:
            parquet = pq.ParquetFile(file)
            return _read_rows(parquet, wanted)
    except UserError:
        raise
    except Exception as error:
        # Whatever broken bytes, or a row that is none, lead pyarrow and numpy to.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"shard {url}: is broken or not the manifest's ({reason})") from error


def _read_rows(parquet: pq.ParquetFile, wanted: np.ndarray) -> list[bytes]:
    n_groups = parquet.metadata.num_row_groups
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(n_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < parquet.metadata.num_rows):
        raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {parquet.metadata.num_rows}")
    group_of = np.searchsorted(ends, wanted, side="right")
    images: list[bytes] = [b""] * len(wanted)
    for group in np.unique(group_of):
        column = parquet.read_row_group(int(group), columns=["image"]).column(0)
        first = int(ends[group]) - sizes[group]
        for place in np.flatnonzero(group_of == group):
            images[place] = column[int(wanted[place]) - first].as_py() or b""
    return images
