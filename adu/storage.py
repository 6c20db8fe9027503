"""Turns a URL into a file system: the one place that knows about object stores.

Everything that reads or writes by URL goes through here, so that credentials, endpoint and region
come from the standard AWS variables (or a profile) in one way for fsspec, pyarrow and Ray.
"""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from adu.errors import UserError

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
MAX_ATTEMPTS = 5

# Files that are copied at a time.
UPLOADS = 16


def filesystem_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it; plain paths are local.

    Raises:
        UserError: If the URL's protocol is unknown or its package is not installed.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    options = _s3_options() if protocol in ("s3", "s3a") else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from error
    return fs, path


def arrow_filesystem_for(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same as `filesystem_for`, as pyarrow and Ray want it."""
    fs, path = filesystem_for(url)
    if isinstance(fs, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or local path."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UserError: If the store cannot be asked.
    """
    fs, path = filesystem_for(url)
    try:
        return fs.exists(path)
    except Exception as error:
        raise UserError(_explain(url, error)) from error


def read_bytes(url: str) -> bytes:
    """Reads a whole file.

    Raises:
        UserError: If it is not there or may not be read.
    """
    fs, path = filesystem_for(url)
    try:
        return fs.cat_file(path)
    except Exception as error:
        raise UserError(_explain(url, error)) from error


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file; a reader sees the old one or the new one, never half of one.

    Raises:
        UserError: If it may not be written.
    """
    fs, path = filesystem_for(url)
    try:
        if isinstance(fs, LocalFileSystem):
            _replace(Path(path), data)
        else:
            fs.pipe_file(path, data)
    except Exception as error:
        raise UserError(_explain(url, error)) from error


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
        except (OSError, NotImplementedError):
            if _content(fs, path) != before:
                return _content(fs, path) == data
            # A store that knows no conditions.
            write_bytes(url, data)
        return True
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explain(url, error)) from error


def list_names(url: str) -> list[str]:
    """Names of what lies directly in a folder, files and folders; none if it is not there.

    Raises:
        UserError: If the store cannot be asked.
    """
    fs, path = filesystem_for(url)
    try:
        found = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        raise UserError(_explain(url, error)) from error
    # A bucket may hold an empty object in the place of the folder itself.
    inside = [name.rstrip("/") for name in found if name.rstrip("/") != path.rstrip("/")]
    return sorted(name.rsplit("/", 1)[-1] for name in inside)


def upload_folder(folder: Path, url: str) -> None:
    """Copies all files of a local folder, and of those in it, to below a URL.

    Raises:
        UserError: If they may not be written.
    """

    def copy(file: Path) -> None:
        write_bytes(join(url, file.relative_to(folder).as_posix()), file.read_bytes())

    with ThreadPoolExecutor(UPLOADS) as threads:
        list(threads.map(copy, (file for file in folder.rglob("*") if file.is_file())))


def remove(url: str) -> None:
    """Removes a file, or a folder with all that is in it; fine if it is not there.

    Raises:
        UserError: If it may not be removed.
    """
    fs, path = filesystem_for(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return
    except Exception as error:
        raise UserError(_explain(url, error)) from error


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
        if not isinstance(fs, LocalFileSystem) and "/" not in path.strip("/"):
            fs.ls(path, refresh=True)
        elif not write and not fs.exists(path):
            raise FileNotFoundError(path)
        if write:
            fs.makedirs(path, exist_ok=True)
            fs.pipe_file(probe, b"")
            fs.rm_file(probe)
    except Exception as error:
        raise UserError(_explain(url, error)) from error


def _s3_options() -> dict[str, Any]:
    """The standard AWS variables as s3fs takes them.

    Keys are given explicitly, although botocore would find them: fsspec hands out the same file
    system again for the same options, even if the environment has changed since.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # Servers other than AWS seldom have a host name for each bucket.
    addressing = {"s3": {"addressing_style": "path"}} if endpoint else {}
    return {
        "profile": os.environ.get("AWS_PROFILE"),
        "key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "token": os.environ.get("AWS_SESSION_TOKEN"),
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": _region()},
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"max_attempts": MAX_ATTEMPTS, "mode": "standard"},
            **addressing,
        },
        # Another process may have written since: never answer from a listing of before.
        "use_listings_cache": False,
    }


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


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(data)
    temporary.replace(target)


def _explain(url: str, error: Exception) -> str:
    """One line for what went wrong with a URL, without the library's own wording where known."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
        reason = "no such bucket" if "bucket" in text.lower() else "no such file or folder"
    elif "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text:
        reason = "the access key or its secret is wrong (AWS_ACCESS_KEY_ID, AWS_PROFILE)"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    elif "NoCredentials" in type(error).__name__:
        reason = "no credentials (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    elif "connect" in text.lower() or "Timeout" in type(error).__name__:
        endpoint = _s3_options()["endpoint_url"] or "its server"
        reason = f"cannot connect to {endpoint}"
    elif isinstance(error, NotADirectoryError | FileExistsError):
        reason = "a part of the path is a file, not a folder"
    else:
        reason = f"{type(error).__name__}: {text[:200]}"
    return f"{url}: {reason}"
