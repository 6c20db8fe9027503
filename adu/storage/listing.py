"""What lies in folders and buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adu.errors import UserError
from adu.storage.persistence import persistently
from adu.storage.s3 import is_s3
from adu.storage.urls import filesystem_for


def names_in(url: str) -> list[str]:
    """Names of the files and folders in a folder; none if there is no such folder.

    Raises:
        UserError: If the store cannot be asked.
    """

    def listed() -> list[str]:
        fs, path = filesystem_for(url)
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
    _, path = filesystem_for(url)
    base = f"{path.rstrip('/')}/"
    entries = _objects_below(url, path) if is_s3(url) else _found_below(url)
    for name, n_bytes in entries:
        # A bucket may hold an empty object in the place of a folder.
        if name.rstrip("/") == path.rstrip("/") or (is_s3(url) and name.endswith("/")):
            continue
        if not name.startswith(base):
            raise UserError(f"{url}: its listing names '{name}', which does not lie in it")
        yield name.removeprefix(base), n_bytes


def _found_below(url: str) -> Iterator[tuple[str, int | None]]:
    def find() -> dict[str, Any]:
        fs, path = filesystem_for(url)
        found: dict[str, Any] = fs.find(path, detail=True)
        return found

    for name, entry in persistently(url, find).items():
        if entry.get("type") != "directory":
            yield name, entry.get("size")


def _objects_below(url: str, path: str) -> Iterator[tuple[str, int | None]]:
    bucket, _, prefix = path.strip("/").partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}

    def next_page() -> dict[str, Any]:
        page: dict[str, Any] = filesystem_for(url)[0].call_s3("list_objects_v2", **asked)
        return page

    more = True
    while more:
        page = persistently(url, next_page)
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", entry["Size"]
        more = page.get("IsTruncated", False)
        asked["ContinuationToken"] = page.get("NextContinuationToken", "")
