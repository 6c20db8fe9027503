"""Writes manifests: rows in order, some at a time, so that any number of them fits into memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any

import pyarrow as pa

from adu import storage
from adu.data.manifest import (
    CARD_FILE,
    CELL_COLUMNS,
    SCHEMA_VERSION,
    VERSION_1_FILES,
    Manifest,
    load_manifest,
)
from adu.data.rows import SCHEMA, RowFiles
from adu.data.sorting import RowSorter
from adu.errors import UserError

# What the digest covers: what an image is and is used as, not where it lies.
DIGEST_COLUMNS = ("image_id", "domain", "class", "split", "sha256")

Rows = Sequence[Mapping[str, Any]]


def write_manifest(
    url: str,
    rows: Rows | pa.Table | Iterator[pa.Table],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    rejected: Sequence[Mapping[str, str]] = (),
    checks: Mapping[str, Any] | None = None,
    entries: Mapping[str, int] | None = None,
    pseudo_domains: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes a manifest, or replaces the one that is there.

    Args:
        url: Folder to write to.
        rows: The images, with the columns of `SCHEMA`: in any order; or, as an iterator, some at a
            time and ordered by ``image_id``.
        name: Name of the data set.
        source: Where the images were found.
        synthetic: Whether they were made up by a program.
        rejected: Images that were left out, with ``image_id`` and ``reason``.
        checks: What was noticed about the images, for the card.
        entries: How many entries the source has and what became of them, for the card.
        pseudo_domains: How domains were found that nobody has labelled, for the card.

    Raises:
        UserError: If the folder cannot be written, or there are no rows.
    """
    before = {storage.below(url, str(path)) for path in _files_of(url)}
    blocks = rows if isinstance(rows, Iterator) else iter([_as_table(rows).sort_by("image_id")])
    files = RowFiles(url)
    cells: Counter[tuple[str, str, str]] = Counter()
    shards: set[str] = set()
    with RowSorter("line") as lines:
        for block in blocks:
            its = block.select(SCHEMA.names).cast(SCHEMA)
            files.add(its)
            lines.add(_digest_lines(its))
            cells.update(_cells_of(its))
            shards |= set(its["shard"].unique().drop_null().to_pylist())
        if not cells:
            raise UserError(f"manifest {url}: there are no images to write")
        digest = _digest_of(lines)
    paths = files.finish()
    counts: Counter[str] = Counter()
    for (domain, _, split), n in cells.items():
        counts[f"{domain}/{split}"] += n
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "classes": sorted({class_ for _, class_, _ in cells}),
        "domains": sorted({domain for domain, _, _ in cells}),
        "digest": digest,
        "source": source,
        "synthetic": synthetic,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": dict(counts),
        "checks": dict(checks or {}),
        "entries": dict(entries or {}),
        "pseudo_domains": dict(pseudo_domains or {}),
        "rejected": [dict(image) for image in rejected],
        "files": paths,
        "shards": sorted(shards),
    }
    storage.write_bytes(storage.join(url, CARD_FILE), json.dumps(card, indent=2).encode())
    for old in sorted(before - {storage.join(url, path) for path in (*paths, *shards)}):
        storage.remove(old)
    return load_manifest(url)


def content_digest(rows: Rows | pa.Table) -> str:
    """SHA-256 over `DIGEST_COLUMNS` of the rows, whatever their order."""
    if not isinstance(rows, pa.Table):
        # What else is in them may not be what a manifest has in the end.
        covered = [{name: row[name] for name in DIGEST_COLUMNS} for row in rows]
        rows = pa.Table.from_pylist(covered, pa.schema([SCHEMA.field(n) for n in DIGEST_COLUMNS]))
    with RowSorter("line") as lines:
        lines.add(_digest_lines(rows))
        return _digest_of(lines)


def _as_table(rows: Rows | pa.Table) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def _digest_lines(table: pa.Table) -> pa.Table:
    # As json.dumps writes a row, without setting up an encoder for each.
    columns = [map(encode_basestring_ascii, table[name].to_pylist()) for name in DIGEST_COLUMNS]
    lines = [f"[{', '.join(values)}]" for values in zip(*columns, strict=True)]
    return pa.table({"line": pa.array(lines, pa.string())})


def _digest_of(lines: RowSorter) -> str:
    digest = hashlib.sha256()
    for block in lines.ordered():
        digest.update("\n".join([*block["line"].to_pylist(), ""]).encode())
    return digest.hexdigest()


def _cells_of(table: pa.Table) -> Mapping[tuple[str, str, str], int]:
    """Number of images of each domain, class and split."""
    names = list(CELL_COLUMNS)
    grouped = table.group_by(names).aggregate([([], "count_all")])
    keys: Iterable[tuple[str, str, str]] = zip(
        *(grouped[name].to_pylist() for name in names), strict=True
    )
    return dict(zip(keys, grouped["count_all"].to_pylist(), strict=True))


def _files_of(url: str) -> set[str]:
    """Files of the manifest that is there now, none if there is none that can be read."""
    card_url = storage.join(url, CARD_FILE)
    if not storage.exists(card_url):
        return set()
    try:
        card = json.loads(storage.read_bytes(card_url))
        return {*card.get("files", VERSION_1_FILES), *card.get("shards", ())}
    except (ValueError, TypeError, AttributeError):
        return set()
