"""Turns a URL into a file system: the one place that knows about object stores.

Everything that reads or writes by URL goes through here, so that credentials, endpoint and region
come from the standard AWS variables (or a profile) in one way for fsspec, pyarrow, Ray and MLflow,
and so that a store that stumbles is asked again, with longer and longer pauses.

There are two layers of that. A request that gets no good answer is repeated by botocore (its
``standard`` mode: exponential backoff with jitter), whoever sent it. `read_bytes` and `write_bytes`
start over beside that, since an answer may also break off in its middle.
"""

from __future__ import annotations

import errno
import io
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from adu.errors import UserError

CONNECT_TIMEOUT_S = 5
# Longest silence of a server; ADU_READ_TIMEOUT_S in the environment changes it.
READ_TIMEOUT_S = 30.0
READ_TIMEOUT_VARIABLE = "ADU_READ_TIMEOUT_S"
# How often a request is sent, at most; AWS_MAX_ATTEMPTS in the environment changes it.
MAX_ATTEMPTS = 4
# How often a file is read or written from the start, at most.
MAX_TRANSFERS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0

# What asking again does not change.
PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
# As s3fs translates a server's 500 and 503, and what sockets report.
TRANSIENT_ERRNOS = {
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EPIPE),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT),
}

T = TypeVar("T")


@dataclass(frozen=True)
class S3Settings:
    """How an S3 server is reached.

    Attributes:
        endpoint: Its URL; None for AWS.
        region: Its region; None to leave it to the library.
        profile: Profile of the AWS configuration files that holds the keys, if no key is given.
        key: Access key.
        secret: Its secret.
        token: Session token of temporary keys.
    """

    endpoint: str | None
    region: str | None
    profile: str | None
    key: str | None
    secret: str | None
    token: str | None

    @property
    def path_style(self) -> bool:
        """Whether the bucket stands in the path: few servers but AWS's name a host for each."""
        return self.endpoint is not None


def s3_settings() -> S3Settings:
    """The standard AWS variables; what they leave open is read from the AWS profile.

    Raises:
        UserError: If ``AWS_PROFILE`` names a profile that does not exist.
    """
    variable = os.environ.get
    endpoint = variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")
    region = variable("AWS_REGION") or variable("AWS_DEFAULT_REGION")
    if endpoint is None or region is None:
        in_profile = _profile_settings(variable("AWS_PROFILE"))
        endpoint = endpoint or in_profile.get("endpoint_url")
        region = region or in_profile.get("region")
    return S3Settings(
        endpoint,
        region,
        variable("AWS_PROFILE"),
        variable("AWS_ACCESS_KEY_ID"),
        variable("AWS_SECRET_ACCESS_KEY"),
        variable("AWS_SESSION_TOKEN"),
    )


def mlflow_variables() -> dict[str, str]:
    """The environment with which MLflow's S3 client reaches the same server in the same way.

    MLflow asks boto3, which finds keys and profile by itself but reads the region from another
    variable, and addresses buckets by host name unless told.
    """
    settings = s3_settings()
    variables = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": str(_max_attempts())}
    if settings.endpoint:
        variables["MLFLOW_S3_ENDPOINT_URL"] = settings.endpoint
        variables["MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"] = "path"
    if settings.region:
        variables["AWS_DEFAULT_REGION"] = settings.region
    return variables


def filesystem_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it; plain paths are local.

    Raises:
        UserError: If the URL's protocol is unknown or its package is not installed.
    """
    options = _s3_options() if is_s3(url) else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from error
    if is_s3(url):
        # s3fs would repeat everything five times more, without jitter.
        fs.retries = 1
    return fs, path


def arrow_filesystem_for(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same as `filesystem_for`, as pyarrow and Ray's ``storage_filesystem`` want it."""
    fs, path = filesystem_for(url)
    if isinstance(fs, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def is_s3(url: str) -> bool:
    """Whether a URL is a place in an S3 server."""
    return url.startswith(("s3://", "s3a://"))


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or local path."""
    return "/".join([url.rstrip("/"), *parts])


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
            with Path(path).open("rb"):
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
            if attempt == MAX_TRANSFERS or is_local(url) or not _is_transient(error):
                raise UserError(_explain(url, error)) from error
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
        data: bytes = fs.cat_file(path, start=start, end=end)
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
        if not fs.exists(path):
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))

    return persistently(url, listed)


def sizes_below(url: str) -> dict[str, int | None]:
    """All files below a folder: their paths relative to it, and their sizes where known.

    Raises:
        UserError: If the store cannot be asked.
    """
    fs, path = filesystem_for(url)
    root = path.rstrip("/")
    found = persistently(url, lambda: fs.find(root, detail=True))
    return {name[len(root) + 1 :]: entry.get("size") for name, entry in found.items()}


def remove(url: str, *, recursive: bool = False) -> None:
    """Removes a file, or with ``recursive`` a folder; nothing happens if it is not there.

    Raises:
        UserError: If it may not be removed.
    """
    fs, path = filesystem_for(url)

    def removed() -> None:
        if fs.exists(path):
            fs.rm(path, recursive=recursive)

    persistently(url, removed)


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
        raise UserError(_explain(url, error)) from error


def _s3_options() -> dict[str, Any]:
    """The settings as s3fs takes them.

    Keys are given explicitly, although botocore would find them: fsspec hands out the same file
    system again for the same options, even if the environment has changed since.
    """
    settings = s3_settings()
    addressing = {"s3": {"addressing_style": "path"}} if settings.path_style else {}
    return {
        "profile": settings.profile,
        "key": settings.key,
        "secret": settings.secret,
        "token": settings.token,
        "endpoint_url": settings.endpoint,
        "client_kwargs": {"region_name": settings.region},
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": float(os.environ.get(READ_TIMEOUT_VARIABLE) or READ_TIMEOUT_S),
            "retries": {"total_max_attempts": _max_attempts(), "mode": "standard"},
            # As many connections as threads may read at a time.
            "max_pool_connections": 64,
            **addressing,
        },
        # Another process may have written since: never answer from a listing of before.
        "use_listings_cache": False,
    }


def _max_attempts() -> int:
    return int(os.environ.get("AWS_MAX_ATTEMPTS") or MAX_ATTEMPTS)


def _profile_settings(profile: str | None) -> dict[str, str]:
    """``region`` and ``endpoint_url`` of a profile in the AWS configuration files."""
    from botocore.exceptions import ProfileNotFound
    from botocore.session import Session

    session = Session(profile=profile)
    try:
        values = dict(session.get_scoped_config())
    except ProfileNotFound as error:
        raise UserError(f"AWS_PROFILE '{profile}': no such profile") from error
    # An endpoint for S3 alone stands in a section of its own.
    services = session.full_config.get("services", {}).get(values.get("services"), {})
    return values | dict(services.get("s3", {}))


def _refusal(url: str, error: Exception) -> UserError:
    """What a look at a file was answered. S3 gives no reason when asked about one object."""
    if is_s3(url) and isinstance(error, PermissionError):
        try:
            _check_bucket(*filesystem_for(url))
        except Exception as told:
            return UserError(_explain(url, told))
    return UserError(_explain(url, error))


def _check_bucket(fs: Any, path: str) -> None:
    """Raises what the server says of a bucket; not being allowed to list one is nothing wrong."""
    bucket = path.strip("/").split("/", 1)[0]
    try:
        # Unlike a look at one object, the answer says in words what is wrong.
        fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except PermissionError as error:
        if _is_wrong_key(_one_line(error)):
            raise


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(data)
    temporary.replace(target)


def _is_transient(error: BaseException) -> bool:
    """Whether the same transfer may succeed a moment later."""
    if isinstance(error, PERMANENT_ERRORS):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    return isinstance(error, _connection_errors())


def _connection_errors() -> tuple[type[BaseException], ...]:
    """What the libraries below fsspec raise when a connection breaks off or is silent."""
    from aiohttp import ClientError
    from botocore.exceptions import (
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )
    from fsspec.exceptions import FSTimeoutError

    return (
        *(ClientError, ConnectionError, HTTPClientError, ReadTimeoutError),
        *(IncompleteReadError, ResponseStreamingError, FlexibleChecksumError, FSTimeoutError),
    )


def _is_wrong_key(text: str) -> bool:
    known = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "access key ID", "signature we calc")
    return any(words in text for words in known)


def _one_line(error: BaseException) -> str:
    # s3fs puts its own words in place of the server's code, which is in the cause.
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def _explain(url: str, error: Exception) -> str:
    """One line for what went wrong with a URL, without the library's own wording where known."""
    text = _one_line(error)
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
        reason = "no such bucket" if "bucket" in text.lower() else "no such file or folder"
    elif _is_wrong_key(text):
        reason = "the access key or its secret is wrong (AWS_ACCESS_KEY_ID, AWS_PROFILE)"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    elif "NoCredentials" in type(error).__name__:
        reason = "no credentials (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    elif "connect" in text.lower() or "Timeout" in type(error).__name__:
        endpoint = (s3_settings().endpoint if is_s3(url) else None) or "its server"
        reason = f"cannot connect to {endpoint}"
    elif isinstance(error, NotADirectoryError | FileExistsError):
        reason = "a part of the path is a file, not a folder"
    else:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    return f"{url}: {' '.join(reason.split())}"
