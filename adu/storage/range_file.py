"""Files that are read in parts, wherever they lie."""

from __future__ import annotations

import io
from typing import Any

from adu.storage.places import read_range, size_bytes


class RangeFile(io.RawIOBase):
    """A file of which only the ranges that are read are fetched, for pyarrow and the like."""

    def __init__(self, url: str, n_bytes: int | None = None) -> None:
        super().__init__()
        self._url = url
        self._size = size_bytes(url) if n_bytes is None else n_bytes
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Fetches the next bytes."""
        length = self._size if size is None or size < 0 else size
        end = min(self._position + length, self._size)
        data = read_range(self._url, self._position, end) if end > self._position else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fetches the next bytes into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
