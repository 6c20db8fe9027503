"""Rows stay home: where the images of a manifest may lie.

A manifest may come from anybody, and its rows say what is opened here, with the keys of this
machine. So a row may name what lies in the manifest's own bucket or, for a manifest on this
machine, in its folder or the one that its images were ingested from. Anything else takes the word
of whoever uses the manifest: ``allow_uri`` of the data configuration.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from adu import storage
from adu.errors import UserError
from adu.storage.urls import CHAIN

if TYPE_CHECKING:
    from adu.data.manifest import Manifest

# Two names of one protocol.
ALIASES = {"s3a": "s3", "gcs": "gs", "local": "file"}
LISTING_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
# What a path relative to the manifest cannot start with: ``data:``, ``file:``.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def homes(url: str, source: str) -> tuple[str, ...]:
    """Where rows may point without anybody's word: prefixes of URIs.

    Args:
        url: The manifest's folder or URL.
        source: Where its images were found; counts for a manifest and images of this machine.
    """
    if not storage.is_local(url):
        scheme, _, rest = url.partition("://")
        return (f"{scheme}://{rest.split('/')[0]}",)
    own = [storage.local_path(url)]
    # A listing's images lie below its folder.
    listed = source.lower().endswith(LISTING_SUFFIXES)
    root = posixpath.dirname(storage.local_path(source)) if listed else storage.local_path(source)
    if source and storage.is_local(source) and root != "/":
        own.append(root)
    return tuple(own)


def is_within(uri: str, prefix: str) -> bool:
    """Whether a URI is a place or lies below it, whatever ``..`` in it says."""
    place, below = _normal(prefix), _normal(uri)
    if place is None or below is None:
        return False
    whole_scheme = place.endswith("://") and below.startswith(place)
    return whole_scheme or f"{below}/".startswith(f"{place.rstrip('/')}/")


def located(manifest: Manifest, uris: Sequence[str], shards: Sequence[str | None]) -> list[str]:
    """The URIs that rows of a manifest are opened by; those in a shard are not opened.

    Args:
        manifest: The manifest.
        uris: Of some of its rows. A relative one starts from the manifest's folder.
        shards: The shards of the same rows, None where the image is loose.

    Raises:
        UserError: Naming the first that leads out of the manifest's own places.
    """
    pairs = zip(uris, shards, strict=True)
    return [uri if shard is not None else _located(manifest, uri) for uri, shard in pairs]


def check_located(manifest: Manifest) -> None:
    """Checks all rows of a manifest as `located` does, row group by row group.

    Raises:
        UserError: Naming the first that leads out of the manifest's own places.
    """
    for uri in elsewhere(manifest):
        _located(manifest, uri)


def elsewhere(manifest: Manifest) -> Iterator[str]:
    """URIs of a manifest's loose images that are relative, or lie outside of its own places."""
    places = _places(manifest)
    for _, group in manifest.rows.groups(["uri", "shard"]):
        loose = group.filter(pc.is_null(group["shard"]))["uri"]
        for uri in _not_plainly_within(loose, places):
            if storage.is_relative(uri) or not any(is_within(uri, place) for place in places):
                yield uri


def check_listed(uri: str, source: str, allowed: Sequence[str], row: str) -> None:
    """Checks a URI that a listing names.

    Args:
        uri: Absolute.
        source: The listing.
        allowed: What else it may name: prefixes of URIs.
        row: What an error calls it.

    Raises:
        UserError: If it lies elsewhere.
    """
    own = homes(posixpath.dirname(source) or ".", "")
    if not any(is_within(uri, place) for place in (*own, *allowed)):
        raise _elsewhere(row, uri, own)


def _located(manifest: Manifest, uri: str) -> str:
    if not uri or storage.is_relative(uri):
        if not uri or SCHEME.match(uri):
            raise _elsewhere(f"manifest {manifest.url}", uri, homes(manifest.url, manifest.source))
        uri = storage.join(manifest.url, uri)
    if not any(is_within(uri, place) for place in _places(manifest)):
        raise _elsewhere(f"manifest {manifest.url}", uri, homes(manifest.url, manifest.source))
    return uri


def _places(manifest: Manifest) -> tuple[str, ...]:
    return (*homes(manifest.url, manifest.source), *manifest.allow_uri)


def _not_plainly_within(uris: pa.ChunkedArray, places: Sequence[str]) -> Iterable[str]:
    """URIs that a look at their letters does not clear."""
    plain = pa.nulls(len(uris), pa.bool_()).fill_null(False)
    for place in places:
        prefix = place if place.endswith("/") else f"{place}/"
        plain = pc.or_(plain, pc.starts_with(uris, prefix).combine_chunks())
    odd = pc.match_substring_regex(uris, r"/\.\.?/|//.*//|::|/\.\.?$").combine_chunks()
    clear = pc.fill_null(pc.and_(plain, pc.invert(odd)), False)
    return (uri or "" for uri in uris.filter(pc.invert(clear)).to_pylist())


def _normal(uri: str) -> str | None:
    """A URI in its one spelling; None if it has none."""
    if storage.is_local(uri):
        return posixpath.normpath(storage.local_path(uri))
    scheme, _, rest = uri.partition("://")
    parts = rest.rstrip("/").split("/")
    if "::" in scheme or CHAIN.search(rest) or {"", ".", ".."} & set(parts[1:]):
        return None
    scheme = ALIASES.get(scheme.lower(), scheme.lower())
    return f"{scheme}://{'/'.join(parts)}"


def _elsewhere(what: str, uri: str, own: Sequence[str]) -> UserError:
    places = " and ".join(own)
    return UserError(
        f"{what}: its image '{uri[:500]}' lies elsewhere (allowed: {places}, and with --allow-uri "
        "PREFIX what is below that)"
    )
