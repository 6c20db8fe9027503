"""Files and folders by URL, in a bucket or here: read, written, listed, tried beforehand.

A store that stumbles is asked again, with longer and longer pauses. There are two layers of that.
A request that gets no good answer is repeated by botocore (its ``standard`` mode: exponential
backoff with jitter), whoever sent it. `read_bytes` and `write_bytes` start over beside that, since
an answer may also break off in its middle.
"""

from __future__ import annotations

import random
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adu.errors import UserError
from adu.storage.errors import NotAFileError, explain, is_transient, is_wrong_key
from adu.storage.s3 import is_s3
from adu.storage.urls import filesystem_for, is_local, join

# How often a file is read or written from the start, at most.
MAX_TRANSFERS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0
# Files that are copied at a time.
UPLOADS = 16

T = TypeVar("T")


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
    fs, path = filesystem_for(url)
    if isinstance(fs, LocalFileSystem):
        return persistently(url, lambda: _local_bytes(path))
    if is_s3(url):
        # One request: s3fs would first ask for the size, to read large files in parts.
        return persistently(url, lambda: fs.cat_file(path, max_concurrency=1))
    return persistently(url, lambda: fs.cat_file(path))


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file; a reader sees the old one or the new one, never half of one.

    Raises:
        UserError: If it may not be written.
    """
    fs, path = filesystem_for(url)
    if isinstance(fs, LocalFileSystem):
        persistently(url, lambda: _replace(Path(path), data))
    else:
        persistently(url, lambda: fs.pipe_file(path, data))


def persistently(url: str, transfer: Callable[[], T]) -> T:
    """Carries out a transfer, again where it broke off; for the user's sake with pauses.

    Args:
        url: What it is about.
        transfer: May be called any number of times.

    Raises:
        UserError: If it cannot succeed, or has not after `MAX_TRANSFERS` attempts.
    """
    for attempt in range(1, MAX_TRANSFERS + 1):
        try:
            return transfer()
        except Exception as error:
            if attempt == MAX_TRANSFERS or is_local(url) or not is_transient(error):
                raise UserError(explain(url, error)) from error
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Waits before another attempt: longer from time to time, and not all readers at once.

    Args:
        attempt: How many have failed.
    """
    longest_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
    time.sleep(random.uniform(0, longest_s))


def read_range(url: str, start: int, end: int) -> bytes:
    """Reads the bytes of a file from ``start`` up to, but without, ``end``.

    Raises:
        UserError: If it is not there or may not be read.
    """
    fs, path = filesystem_for(url)

    def read() -> bytes:
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
    fs, path = filesystem_for(url)
    return persistently(url, lambda: int(fs.size(path)))


def names_in(url: str) -> list[str]:
    """Names of the files and folders in a folder; none if there is no such folder.

    Raises:
        UserError: If the store cannot be asked.
    """
    fs, path = filesystem_for(url)

    def listed() -> list[str]:
        try:
            found = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # A bucket may hold an empty object in the place of the folder itself.
        inside = [name.rstrip("/") for name in found if name.rstrip("/") != path.rstrip("/")]
        return sorted(name.rsplit("/", 1)[-1] for name in inside)

    return persistently(url, listed)


def files_below(url: str) -> Iterator[tuple[str, int | None]]:
    """All files below a folder: their paths relative to it, and their sizes where known.

    An S3 server is asked page by page, so that any number of files takes no memory.

    Raises:
        UserError: If the store cannot be asked, or lists what does not lie there.
    """
    fs, path = filesystem_for(url)
    base = f"{path.rstrip('/')}/"
    entries = _objects_below(url, fs, path) if is_s3(url) else _found_below(url, fs, path)
    for name, n_bytes in entries:
        # A bucket may hold an empty object in the place of a folder.
        if name.rstrip("/") == path.rstrip("/") or (is_s3(url) and name.endswith("/")):
            continue
        if not name.startswith(base):
            raise UserError(f"{url}: its listing names '{name}', which does not lie in it")
        yield name.removeprefix(base), n_bytes


def remove(url: str, *, recursive: bool = False) -> None:
    """Removes a file, or with ``recursive`` a folder; nothing happens if it is not there.

    Raises:
        UserError: If it may not be removed.
    """
    fs, path = filesystem_for(url)

    def removed() -> None:
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


def _found_below(
    url: str, fs: fsspec.AbstractFileSystem, path: str
) -> Iterator[tuple[str, int | None]]:
    found = persistently(url, lambda: fs.find(path, detail=True))
    for name, entry in found.items():
        if entry.get("type") != "directory":
            yield name, entry.get("size")


def _objects_below(url: str, fs: Any, path: str) -> Iterator[tuple[str, int | None]]:
    bucket, _, prefix = path.strip("/").partition("/")
    place = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    following: dict[str, str] = {}
    while True:
        page = persistently(url, partial(fs.call_s3, "list_objects_v2", **place, **following))
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", entry["Size"]
        if not page.get("IsTruncated"):
            return
        following = {"ContinuationToken": page["NextContinuationToken"]}


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
        if is_wrong_key(error):
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
