"""URLs and paths: which file system one stands for, and what it means there."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from adu.errors import UserError
from adu.storage.s3 import is_s3, s3fs_options

LOCAL_SCHEMES = ("file://", "local://")
# ``zip://inside::file:///outside``, which fsspec opens one through the other.
CHAIN = re.compile(r"::[a-z0-9+]+://")


def filesystem_for(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it; plain paths are local.

    A path is taken as it is written: no character of it is a pattern or a link to another URL.

    Raises:
        UserError: If the URL's protocol is unknown or its package is not installed, if it is made
            of several URLs, or if a part of it between two slashes is empty, ``.`` or ``..``.
    """
    if is_local(url):
        return fsspec.filesystem("file"), local_path(url)
    _check_parts(url)
    options = s3fs_options() if is_s3(url) else {}
    try:
        if "::" in url:
            # In a path, two colons are part of a name. fsspec would take them for a chain of URLs.
            scheme, _, rest = url.partition("://")
            first, _, others = rest.partition("/")
            fs, root = fsspec.core.url_to_fs(f"{scheme}://{first}", **options)
            path = f"{root.rstrip('/')}/{others.rstrip('/')}"
        else:
            fs, path = fsspec.core.url_to_fs(url, **options)
    except Exception as error:
        # Whatever the file system of a protocol raises where it does not like its URL.
        raise UserError(f"{url}: {' '.join(str(error).split())[:200]}") from error
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
    scheme, separator, _ = url.partition("://")
    # A path may hold "://" too, but then something with a slash stands before it.
    return not separator or "/" in scheme or url.startswith(LOCAL_SCHEMES)


def is_relative(url: str) -> bool:
    """Whether a URL is a path that starts from some folder."""
    return is_local(url) and not url.startswith(("/", *LOCAL_SCHEMES))


def local_path(url: str) -> str:
    """The absolute path that a local URL or path means; links and ``..`` in it stay."""
    path = Path(url)
    for scheme in LOCAL_SCHEMES:
        if url.startswith(scheme):
            path = Path(url.removeprefix(scheme))
    with suppress(RuntimeError, ValueError):  # "~name", and no such user: the name of a file
        path = path.expanduser()
    return f"/{str(path.absolute()).lstrip('/')}"


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or local path."""
    if url.endswith("://"):
        return url + "/".join(parts)
    return "/".join([url.rstrip("/"), *parts])


def below(url: str, path: str) -> str:
    """Appends a path that was read somewhere and must not lead out of the URL.

    Raises:
        UserError: If it would.
    """
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise UserError(f"{url}: names the file '{path}', which does not lie in it")
    return join(url, path)


def _check_parts(url: str) -> None:
    """Refuses URLs that would be taken for something else than the place that they name."""
    scheme, _, rest = url.partition("://")
    if "::" in scheme or CHAIN.search(rest):
        raise UserError(
            f"{url}: is made of several URLs (allowed: one, such as s3://bucket/folder)"
        )
    if scheme in ("http", "https"):
        return
    if is_s3(url) and not rest.split("/")[0]:
        raise UserError(f"{url}: names no bucket")
    for part in rest.rstrip("/").split("/")[1:]:
        if part in ("", ".", ".."):
            raise UserError(f"{url}: has a part '{part}' between slashes (allowed: names)")
    if is_s3(url) and "?versionId=" in rest:
        # s3fs would leave it out of the key.
        raise UserError(f"{url}: has '?versionId=' in a name (versions cannot be chosen)")
