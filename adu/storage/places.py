"""Files and folders by URL, in a bucket or here: read, written, listed, tried beforehand."""

from __future__ import annotations

import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adu.errors import UserError
from adu.storage.errors import NotAFileError, explain, is_expired, is_wrong_key
from adu.storage.persistence import persistently
from adu.storage.s3 import is_s3
from adu.storage.urls import filesystem_for, join

# Files that are copied at a time.
UPLOADS = 16


def exists(url: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UserError: If the store cannot be asked, or the bucket is missing.
    """
    fs, path = filesystem_for(url)
    try:
        if fs.exists(path):
            return True
        if is_s3(url):
            _check_bucket(fs, path)
        return False
    except Exception as error:
        raise _refusal(url, error) from error


def check_readable(url: str) -> None:
    """Sees whether a file is there and may be read, without reading it.

    Raises:
        UserError: If it is not there or may not be read.
    """
    fs, path = filesystem_for(url)
    try:
        if isinstance(fs, LocalFileSystem):
            with _open_file(path):
                return
        fs.info(path)
    except Exception as error:
        raise _refusal(url, error) from error


def read_bytes(url: str) -> bytes:
    """Reads a whole file.

    Raises:
        UserError: If it is not there or may not be read.
    """

    def read() -> bytes:
        # Looked up for each attempt: keys may have been renewed since the last one.
        fs, path = filesystem_for(url)
        if isinstance(fs, LocalFileSystem):
            return _local_bytes(path)
        # One request: s3fs would first ask for the size, to read large files in parts.
        options = {"max_concurrency": 1} if is_s3(url) else {}
        data: bytes = fs.cat_file(path, **options)
        return data

    return persistently(url, read)


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file; a reader sees the old one or the new one, never half of one.

    Raises:
        UserError: If it may not be written.
    """

    def write() -> None:
        fs, path = filesystem_for(url)
        if isinstance(fs, LocalFileSystem):
            _replace(Path(path), data)
        else:
            fs.pipe_file(path, data)

    persistently(url, write)


def read_range(url: str, start: int, end: int) -> bytes:
    """Reads the bytes of a file from ``start`` up to, but without, ``end``.

    Raises:
        UserError: If it is not there or may not be read.
    """

    def read() -> bytes:
        fs, path = filesystem_for(url)
        local = isinstance(fs, LocalFileSystem)
        data: bytes = (
            _local_bytes(path, start, end) if local else fs.cat_file(path, start=start, end=end)
        )
        if len(data) != end - start:
            raise ConnectionError(f"{len(data)} of {end - start} bytes came")
        return data

    return persistently(url, read)


def size_bytes(url: str) -> int:
    """Size of a file.

    Raises:
        UserError: If it is not there or may not be asked for.
    """

    def size() -> int:
        fs, path = filesystem_for(url)
        try:
            return int(fs.size(path))
        except PermissionError:
            if is_s3(url):
                _check_bucket(fs, path)
            raise

    return persistently(url, size)


def remove(url: str, *, recursive: bool = False) -> None:
    """Removes a file, or with ``recursive`` a folder; nothing happens if it is not there.

    Raises:
        UserError: If it may not be removed.
    """

    def removed() -> None:
        fs, path = filesystem_for(url)
        if not fs.exists(path):
            return
        if isinstance(fs, LocalFileSystem):
            fs.rm(path, recursive=recursive)
            return
        # Not ``fs.rm``: it would take ``*`` and ``[`` in a name for a pattern, and remove whatever
        # else that fits.
        files = fs.find(path) if recursive else [path]
        with ThreadPoolExecutor(UPLOADS) as threads:
            list(threads.map(fs.rm_file, files))
        if recursive and not is_s3(url):
            _remove_folders(fs, path)

    persistently(url, removed)


def replace_bytes(url: str, data: bytes, before: bytes | None) -> bool:
    """Writes a whole file if what is there is still what it was.

    S3 compares and writes in one step. Of two that write elsewhere at the same instant, both may
    be told that they have.

    Args:
        url: The file.
        data: What to write.
        before: What must be there; None for nothing.

    Returns:
        Whether it was written.

    Raises:
        UserError: If the store cannot be asked or may not be written.
    """
    fs, path = filesystem_for(url)
    try:
        # The version first: were the content read first, another's might be taken for it.
        condition = _same_version(fs, path, before)
        if _content(fs, path) != before:
            return False
        if condition is None:
            write_bytes(url, data)
            return True
        bucket, key = path.split("/", 1)
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError:
            if _content(fs, path) != before:
                return _content(fs, path) == data
            # A store that knows no conditions.
            write_bytes(url, data)
        return True
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(url, error)) from error


def upload_folder(folder: Path, url: str) -> None:
    """Copies all files of a local folder, and of those in it, to below a URL.

    Raises:
        UserError: If they may not be written.
    """

    def copy(file: Path) -> None:
        write_bytes(join(url, file.relative_to(folder).as_posix()), file.read_bytes())

    with ThreadPoolExecutor(UPLOADS) as threads:
        list(threads.map(copy, (file for file in folder.rglob("*") if file.is_file())))


def check_reachable(url: str, *, write: bool = False) -> None:
    """Tries a folder or bucket before any work is done.

    Args:
        url: The folder; it need not exist if it is to be written.
        write: Whether a small file is written (and removed) too.

    Raises:
        UserError: Saying in one line what is wrong: no such bucket, wrong key, no connection,
            not writable.
    """
    fs, path = filesystem_for(url)
    probe = join(path, f".probe-{uuid.uuid4().hex}")
    try:
        if is_s3(url):
            _check_bucket(fs, path)
        if not write and not fs.exists(path):
            raise FileNotFoundError(path)
        if write:
            fs.makedirs(path, exist_ok=True)
            fs.pipe_file(probe, b"")
            fs.rm_file(probe)
    except Exception as error:
        raise UserError(explain(url, error)) from error


def _content(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        return None


def _same_version(
    fs: fsspec.AbstractFileSystem, path: str, before: bytes | None
) -> dict[str, str] | None:
    """A condition for S3 that a file is still as it is now; None where there are no conditions."""
    if "s3" not in fs.protocol:
        return None
    if before is None:
        return {"IfNoneMatch": "*"}
    try:
        return {"IfMatch": fs.info(path, refresh=True)["ETag"]}
    except FileNotFoundError:
        return {"IfNoneMatch": "*"}


def _refusal(url: str, error: Exception) -> UserError:
    """What a look at a file was answered. S3 gives no reason when asked about one object."""
    if is_s3(url) and isinstance(error, PermissionError):
        try:
            _check_bucket(*filesystem_for(url))
        except Exception as told:
            return UserError(explain(url, told))
    return UserError(explain(url, error))


def _check_bucket(fs: Any, path: str) -> None:
    """Raises what the server says of a bucket; not being allowed to list one is nothing wrong."""
    bucket = path.strip("/").split("/", 1)[0]
    try:
        # Unlike a look at one object, the answer says in words what is wrong.
        fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except PermissionError as error:
        if is_wrong_key(error) or is_expired(error):
            raise


def _open_file(path: str) -> BinaryIO:
    """Opens a file of this machine; a pipe would never answer, and a device may answer for ever."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotAFileError(path)
    return Path(path).open("rb")


def _local_bytes(path: str, start: int = 0, end: int | None = None) -> bytes:
    with _open_file(path) as file:
        file.seek(start)
        return file.read() if end is None else file.read(end - start)


def _remove_folders(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Removes a folder that holds nothing but folders."""
    inside: list[str] = fs.find(path, withdirs=True)
    for folder in [*sorted(inside, reverse=True), path]:
        with suppress(OSError):
            fs.rmdir(folder)


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError:
        # Half of it would help to keep the disk full.
        temporary.unlink(missing_ok=True)
        raise
