"""Images of any kind as a manifest: a folder, a table of paths, data sets of other libraries.

Small data sets are meant, a notebook's: every image is read once here. `pipeline/ingest.py` is for
what is large or not clean. What a data set holds decoded is kept as PNG, without loss.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from adu import storage
from adu.data.images import to_rgb
from adu.data.listing import image_row, plain_name, set_aside
from adu.data.manifest import CARD_FILE, SPLITS, Manifest, load_manifest
from adu.data.shards import ShardBuilder, save_shard
from adu.data.writing import content_digest, write_manifest
from adu.errors import UserError

THREADS = 16
SHARD_BYTES = 64 * 2**20
# What the columns of tables and data sets may be called.
COLUMNS = {
    "image": ("image", "path", "file", "uri"),
    "class": ("class", "label", "class_name"),
    "domain": ("domain",),
    "split": ("split",),
}
# What other libraries call the side that is not learned from.
SPLIT_NAMES = {"val": "test", "valid": "test", "validation": "test"}


@dataclass(frozen=True)
class Item:
    """An image that somebody has.

    Attributes:
        image_id: Its name in the data set.
        domain: Its domain.
        class_: Its class.
        split: ``train``, ``test`` or None where nobody says.
        load: Gives its encoded bytes.
        uri: Where it lies; None where it lies in no file.
    """

    image_id: str
    domain: str
    class_: str
    split: str | None
    load: Callable[[], bytes]
    uri: str | None = None


def open_images(
    source: Any, out: str | None = None, test_share: float = 0.5, seed: int = 0
) -> Manifest:
    """Opens images as a manifest; `adu.open_images` says what all of it means.

    Raises:
        UserError: If the source is of no known kind, or an image in it cannot be used.
    """
    if isinstance(source, Manifest):
        return source
    if isinstance(source, str | os.PathLike):
        url = os.fspath(source)
        if storage.exists(storage.join(url, CARD_FILE)):
            return load_manifest(url)
        return _manifest(_folder_items(url), url, out, test_share, seed)
    items: Iterable[Item]
    if isinstance(source, Mapping):
        items = _items_of_many(source)
    elif _is_hugging_face(source):
        items = _table_items(source.column_names, source, _class_names(source), None)
    elif hasattr(source, "columns") and hasattr(source, "to_dict"):
        records = source.to_dict("records")
        items = _table_items(list(source.columns), records, None, None)
    else:
        raise UserError(
            f"images: a {type(source).__name__} cannot be opened (allowed: a manifest, a folder or "
            "URL, a dict of torchvision-style data sets by domain, a Hugging Face data set, a "
            "DataFrame)"
        )
    return _manifest(items, type(source).__name__, out, test_share, seed)


def _manifest(
    items: Iterable[Item], source: str, out: str | None, test_share: float, seed: int
) -> Manifest:
    """Writes the manifest of some images, with those that lie in no file in shards beside it."""
    found = _with_splits(list(items), test_share, seed)
    if not found:
        raise UserError(f"images {source}: there are none")
    rows: list[dict[str, Any]] = []
    shards: list[bytes] = []
    builder = ShardBuilder()
    with ThreadPoolExecutor(THREADS) as pool:
        for item, data in zip(found, pool.map(lambda item: item.load(), found), strict=True):
            row = image_row(
                data,
                image_id=item.image_id,
                uri=item.uri or item.image_id,
                domain=plain_name(item.domain),
                class_=plain_name(item.class_),
                split=str(item.split),
            )
            if item.uri is None:
                row |= {"shard": len(shards), "shard_row": builder.add(item.image_id, data)}
            rows.append(row)
            if builder.n_bytes >= SHARD_BYTES:
                shards.append(builder.finish())
                builder = ShardBuilder()
    if builder.n_images:
        shards.append(builder.finish())
    url = out or f"memory://adu-images/{content_digest(rows)[:16]}"
    names = [save_shard(url, number, data) for number, data in enumerate(shards)]
    for row in rows:
        if "shard" in row:
            row["shard"] = names[row["shard"]]
    manifest = write_manifest(
        url, rows, name=plain_name(posixpath.basename(source.rstrip("/"))), source=source
    )
    # Who opens these images here has named where they lie.
    homes = {posixpath.dirname(item.uri) for item in found if item.uri is not None}
    return replace(manifest, allow_uri=tuple(sorted(homes)))


def _with_splits(items: list[Item], test_share: float, seed: int) -> list[Item]:
    """The same images, each with a side."""
    undecided: dict[tuple[str, str], list[str]] = {}
    for item in items:
        if item.split is None:
            undecided.setdefault((item.domain, item.class_), []).append(item.image_id)
    test: set[str] = set()
    for names in undecided.values():
        test |= set_aside(names, test_share, seed)
    return [
        item
        if item.split is not None
        else replace(item, split="test" if item.image_id in test else "train")
        for item in items
    ]


def _folder_items(url: str) -> Iterator[Item]:
    """The images of a folder, laid out as ``domain/class/file``; hidden files are none."""
    if not storage.exists(url):
        raise UserError(f"images {url}: no such folder, nor a manifest")
    base = storage.local_path(url) if storage.is_local(url) else url.rstrip("/")
    for path, _ in sorted(storage.files_below(url)):
        parts = path.split("/")
        if any(part.startswith(".") for part in parts):
            continue
        if len(parts) != 3:
            raise UserError(f"images {url}: '{path}' does not lie as domain/class/file")
        uri = f"{base}/{path}"
        yield Item(path, parts[0], parts[1], None, partial(storage.read_bytes, uri), uri)


def _items_of_many(sources: Mapping[str, Any]) -> list[Item]:
    """The images of a data set for each domain, or of a Hugging Face data set for each split."""
    items: list[Item] = []
    for name, source in sources.items():
        if _is_hugging_face(source):
            split = _split_name(name)
            items += _table_items(source.column_names, source, _class_names(source), split)
        elif hasattr(source, "classes") and hasattr(source, "__getitem__"):
            items += _torchvision_items(name, source)
        else:
            raise UserError(
                f"images['{name}']: a {type(source).__name__} (allowed: a data set with classes "
                "and items, as torchvision's, or a Hugging Face data set)"
            )
    return items


def _torchvision_items(domain: str, source: Any) -> Iterator[Item]:
    for number in range(len(source)):
        class_ = str(source.classes[int(source[number][1])])
        load = partial(_png_of, source, number, f"{domain} {number}")
        yield Item(f"{domain}/{class_}/{number}", domain, class_, None, load)


def _is_hugging_face(source: Any) -> bool:
    return hasattr(source, "column_names") and hasattr(source, "features")


def _class_names(source: Any) -> list[str] | None:
    """The names of a Hugging Face data set's class numbers, if it has any."""
    feature = source.features.get(_column(source.column_names, "class"))
    return getattr(feature, "names", None)


def _table_items(
    columns: list[str], records: Iterable[Mapping[str, Any]], names: Any, split: str | None
) -> Iterator[Item]:
    """The images of a table's rows.

    Args:
        columns: What its columns are called.
        records: Its rows.
        names: Of the class numbers; None where classes stand there by name.
        split: Of all of them; None where a column or nobody says.
    """
    image, class_, domain = (_column(columns, what) for what in ("image", "class", "domain"))
    has_split = split is None and "split" in columns
    for number, record in enumerate(records):
        label = record[class_]
        label = str(label if names is None else names[int(label)])
        side = _split_name(str(record["split"])) if has_split else split
        where, place, uri = str(record[domain]), record[image], None
        prefix = "/".join(filter(None, (split, where, label)))
        if isinstance(place, str | os.PathLike):
            path = os.fspath(place)
            uri = storage.local_path(path) if storage.is_local(path) else path
            yield Item(
                f"{prefix}/{number}", where, label, side, partial(storage.read_bytes, uri), uri
            )
        else:
            load = partial(_png, place, f"in row {number}")
            yield Item(f"{prefix}/{number}", where, label, side, load)


def _column(columns: list[str], what: str) -> str:
    for name in COLUMNS[what]:
        if name in columns:
            return name
    raise UserError(
        f"images: there is no column for the {what} among {', '.join(map(str, columns))} "
        f"(allowed: {' or '.join(COLUMNS[what])})"
    )


def _split_name(name: str) -> str:
    split = SPLIT_NAMES.get(name.lower(), name.lower())
    if split not in SPLITS:
        known = ", ".join([*SPLITS, *SPLIT_NAMES])
        raise UserError(f"images: split '{name}': unknown (allowed: {known})")
    return split


def picture(image: Any, name: str) -> Image.Image:
    """A picture as a notebook holds it, upright and in 8-bit RGB.

    Args:
        image: Pillow's, or an array of bytes, (height, width) or (height, width, channels).
        name: What an error calls it.

    Raises:
        UserError: If it is neither.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    levels = np.asarray(image)
    is_picture = levels.ndim == 2 or (levels.ndim == 3 and levels.shape[2] in (1, 3, 4))
    if levels.dtype != np.uint8 or not is_picture or not levels.size:
        raise UserError(
            f"image {name}: is a {type(image).__name__} of {levels.dtype}, shape {levels.shape} "
            "(allowed: Pillow's, or an array of uint8, height x width x 1, 3 or 4)"
        )
    return to_rgb(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels), name)


def _png_of(source: Any, number: int, name: str) -> bytes:
    return _png(source[number][0], name)


def _png(image: Any, name: str) -> bytes:
    buffer = io.BytesIO()
    picture(image, name).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
