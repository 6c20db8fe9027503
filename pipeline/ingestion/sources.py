"""What lies below a source: its images, and everything that is left out, with the reason.

Nothing is opened here but folders. Whatever is found is either an image or left out, so that their
numbers add up to what is there.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adu import storage
from adu.errors import UserError
from adu.storage.errors import explain
from pipeline.names import shown

# Formats that `adu.data.images` decodes.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".dds", ".ico", ".qoi", ".sgi"),
)
# Images all the same, of formats that it does not decode.
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".svgz", ".eps", ".ps", ".pdf", ".ai"),
    *(".psd", ".psb", ".xcf", ".kra", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".crw"),
    *(".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr"),
    *(".wmf", ".emf", ".xbm", ".xpm", ".icns", ".cur", ".flif", ".bpg", ".fits", ".djvu"),
)
# Written by systems and programs beside what people have, like whatever starts with a dot.
SYSTEM_NAMES = {
    *("@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
    *("system volume information", "lost+found", "#recycle", "@tmp", "__pycache__"),
}


# A path below the source, and its size in bytes where a listing tells it.
File = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that is found and not used.

    Attributes:
        check: Which of the checks says why (`image_checks.CHECKS`).
        name: Its path below the source.
        reason: One line for what a person would have taken for an image; empty for anything else.
    """

    check: str
    name: str
    reason: str = ""


@dataclass(frozen=True)
class Source:
    """What lies below a source.

    Attributes:
        url: The source.
        images: Paths of its images, and their sizes in bytes where a listing tells them, as they
            are found.
        left_out: Everything else, once all images have been given. What lies in a folder that is
            left out is not looked at.
        uri_of: Turns a path below the source into a URI that stays valid elsewhere.
    """

    url: str
    images: Iterator[File]
    left_out: list[LeftOut]
    uri_of: Callable[[str], str]


def list_source(url: str) -> Source:
    """Lists a folder or bucket. On this machine links are followed.

    Raises:
        UserError: If there is no such folder, or it cannot be listed.
    """
    if not storage.exists(url):
        raise UserError(f"source {url}: no such folder")
    uri_of = uri_maker(url)
    left_out: list[LeftOut] = []
    files = _local_files(url, left_out) if storage.is_local(url) else _stored_files(url, left_out)
    return Source(url, _images_among(files, left_out), left_out, uri_of)


def _images_among(files: Iterable[File], left_out: list[LeftOut]) -> Iterator[File]:
    for path, n_bytes in files:
        suffix = posixpath.splitext(path)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            yield path, n_bytes
        elif suffix in OTHER_IMAGE_SUFFIXES:
            reason = f"image {path}: is of a format that is not read here"
            left_out.append(LeftOut("unknown_format", path, reason))
        else:
            left_out.append(LeftOut("other_file", path))


def uri_maker(url: str) -> Callable[[str], str]:
    """Gives the function that turns a path below a source into a URI that stays valid elsewhere.

    Raises:
        UserError: If the source's own path is no text, which a manifest could hold.
    """
    fs, root = storage.filesystem_for(url)
    if not _is_unicode(root):
        raise UserError(f"source {url}: its path is not UTF-8")
    root = root.rstrip("/")
    base = root if storage.is_local(url) else fs.unstrip_protocol(root).rstrip("/")
    return lambda path: f"{base}/{path}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or program rather than to a person."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def briefly(left_out: Iterable[LeftOut]) -> str:
    """What was left out, with numbers and an example each, for an error."""
    by_check: dict[str, list[str]] = {}
    for each in left_out:
        by_check.setdefault(each.check, []).append(each.name)
    told = [f"{check} {len(names)} ({names[0]})" for check, names in by_check.items()]
    return ", ".join(told) or "nothing"


@dataclass(frozen=True)
class _Folder:
    """A folder on the way: where it lies, what it is called and which folders it lies in."""

    place: str
    name: str
    inside: tuple[tuple[int, int], ...]


def _local_files(url: str, left_out: list[LeftOut]) -> Iterator[File]:
    root = storage.local_path(url)
    if not Path(root).is_dir():
        raise UserError(f"source {url}: is a file, not a folder")
    folders = [_Folder(root, "", (_identity(os.stat(root)),))]  # noqa: PTH116 - as those below
    while folders:
        folder = folders.pop()
        for entry in _entries(folder, left_out):
            found = _enter(entry, folder, left_out)
            if isinstance(found, _Folder):
                folders.append(found)
            elif found is not None:
                yield found


def _entries(folder: _Folder, left_out: list[LeftOut]) -> list[os.DirEntry[str]]:
    """What a folder holds."""
    try:
        entries = sorted(os.scandir(folder.place), key=lambda entry: entry.name)
    except OSError as error:
        if not folder.name:
            raise UserError(explain(folder.place, error)) from error
        left_out.append(_left_out("unreadable", folder.name, _why(folder.place, error)))
        return []
    if not entries and folder.name:
        left_out.append(_left_out("empty_folder", folder.name))
    return entries


def _enter(
    entry: os.DirEntry[str], folder: _Folder, left_out: list[LeftOut]
) -> File | _Folder | None:
    """A file, or a folder that is to be looked into; None for what is left out."""
    path = f"{folder.name}/{entry.name}".lstrip("/")
    status: os.stat_result | None = None
    if not _is_unicode(entry.name):
        check, path, why = "broken_name", shown(path), "its name is not UTF-8"
    elif is_hidden(entry.name):
        check, why = "hidden", ""
    else:
        try:
            status = entry.stat()
            check, why = "not_a_file", "is a pipe, socket or device, not a file"
        except OSError as error:
            circle = error.errno == errno.ELOOP
            check, why = "link_loop" if circle else "unreadable", _why(entry.path, error)
    if status is not None and stat.S_ISREG(status.st_mode):
        return path, status.st_size
    if status is not None and stat.S_ISDIR(status.st_mode):
        if _identity(status) not in folder.inside:
            return _Folder(entry.path, path, (*folder.inside, _identity(status)))
        check, why = "link_loop", "is a link to a folder that it lies in"
    left_out.append(_left_out(check, path, why))
    return None


def _stored_files(url: str, left_out: list[LeftOut]) -> Iterator[File]:
    hidden = set()
    for path, n_bytes in storage.files_below(url):
        parts = path.split("/")
        first_hidden = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        if {"", ".", ".."} & set(parts):
            why = "a part of its key is empty, '.' or '..'"
            left_out.append(_left_out("broken_name", shown(path), why))
        elif first_hidden is not None:
            hidden.add("/".join(parts[: first_hidden + 1]))
        else:
            yield path, n_bytes
    left_out += [_left_out("hidden", path) for path in sorted(hidden)]


def _left_out(check: str, path: str, why: str = "") -> LeftOut:
    return LeftOut(check, path, f"image {path}: {why}" if why else "")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why(place: str, error: OSError) -> str:
    return explain(place, error).removeprefix(f"{place}: ")
