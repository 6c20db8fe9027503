"""How data sets lie in folders, and what that says of each image: domain, class, split.

A layout only lists; no image is opened here.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from adu import storage
from adu.data.listing import plain_name
from adu.data.uris import check_listed
from adu.errors import UserError
from pipeline.ingestion.listing import NO_DOMAIN, Found, Listing
from pipeline.ingestion.lists import (
    NEEDED,
    WNID,
    read_class_names,
    read_listing,
    read_split_file,
)
from pipeline.ingestion.sources import (
    IMAGE_SUFFIXES,
    LeftOut,
    Source,
    briefly,
    is_hidden,
    list_source,
    uri_maker,
)

SPLIT_FOLDERS = ("splits_mini", "splits", "")
SPLIT_NAMES = {"train": "train", "test": "test", "val": "test", "validation": "test"}
SPLIT_FILE = re.compile(r".+_(train|test)\.txt", re.DOTALL)

# Dassl's VLCS has its classes by number. It validates on ``crossval``, which was set aside from the
# training side; ``full`` is the two of them once more.
VLCS_CLASSES = {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}
VLCS_SPLITS = {"train": "train", "crossval": "train", "full": "train", "test": "test"}

# VisDA-2017 has a domain in each of its splits: renders, crops of COCO, and frames of videos whose
# labels came later, by number.
VISDA_DOMAINS = {"train": "synthetic", "validation": "real"}
VISDA_TEST, VISDA_TEST_DOMAIN = "test", "video"
VISDA_LABELS = "image_list.txt"
VISDA_CLASSES = (
    *("aeroplane", "bicycle", "bus", "car", "horse", "knife", "motorcycle", "person", "plant"),
    *("skateboard", "train", "truck"),
)

Layout = Literal["domain_class", "split_files", "imagenet_sketch", "vlcs", "visda", "listing"]


def find_images(
    source: str,
    layout: Layout,
    *,
    splits: str | None = None,
    sketch_source: str | None = None,
    class_names: str | None = None,
    allow_uri: Sequence[str] = (),
    may_lack_domain: bool = False,
) -> Listing:
    """Lists the images of a source; the listing is to be closed.

    Domain and class names are lower case with underscores, so that ``Real World`` is
    ``real_world`` and ``Alarm_Clock`` of one domain is ``alarm clock`` of another. ImageNet's
    classes keep the names of their table.

    Args:
        source: Folder or URL; for ``listing`` the file.
        layout: How the images lie there.
        splits: For ``split_files``: the folder of the lists, below the source.
        sketch_source: For ``imagenet_sketch``: where the sketches lie, if not below the source.
        class_names: For ``imagenet_sketch``: a file with lines ``wnid name``.
        allow_uri: For ``listing``: where its images may lie beside below its folder.
        may_lack_domain: Whether there may be images without a domain: ``CLASS/FILE``, and rows of a
            listing.

    Raises:
        UserError: If there is no source, no image in it in this layout, or two images with one
            name.
    """
    left_out: list[LeftOut] = []
    if layout == "domain_class":
        images = _domain_class(source, left_out, may_lack_domain)
    elif layout == "split_files":
        images = _split_files(source, splits)
    elif layout == "imagenet_sketch":
        images = _imagenet_sketch(source, sketch_source, class_names, left_out)
    elif layout == "vlcs":
        images = _vlcs(source, left_out)
    elif layout == "visda":
        images = _visda(source, left_out)
    else:
        images = _listing(source, allow_uri, may_lack_domain)
    listing = Listing(source, left_out, one_spelling=layout != "imagenet_sketch")
    try:
        listing.take(images)
        if not listing.cells:
            raise UserError(
                f"source {source}: has no images (looked for {', '.join(IMAGE_SUFFIXES)}; left "
                f"out: {briefly(sorted(left_out, key=lambda each: each.name))})"
            )
    except BaseException:
        listing.close()
        raise
    return listing


def _domain_class(source: str, left_out: list[LeftOut], may_lack_domain: bool) -> Iterator[Found]:
    place = list_source(source)
    elsewhere, n_elsewhere = "", 0
    for path, n_bytes in place.images:
        parts = path.split("/")
        if len(parts) == 4 and parts[1] == "images":
            # As Office-31 is unpacked.
            del parts[1]
        if len(parts) == 3:
            yield Found(path, place.uri_of(path), parts[0], parts[1], None, n_bytes)
        elif len(parts) == 2 and may_lack_domain:
            yield Found(path, place.uri_of(path), NO_DOMAIN, parts[0], None, n_bytes)
        else:
            elsewhere = min(elsewhere or path, path)
            n_elsewhere += 1
    if elsewhere:
        raise UserError(
            f"source {source}: '{elsewhere}' does not lie as domain/class/file"
            + (f", nor do {n_elsewhere - 1} more" if n_elsewhere > 1 else "")
        )
    left_out += place.left_out


def _split_files(source: str, splits: str | None) -> Iterator[Found]:
    folder, names = _split_file_names(source, splits)
    class_of: dict[int, str] = {}
    uri_of = uri_maker(source)
    for name in names:
        domain, split = name.removesuffix(".txt").rsplit("_", 1)
        url = storage.join(source, *filter(None, [folder, name]))
        for number, path, label in read_split_file(url, name):
            found_class = path.split("/")[-2]
            class_ = class_of.setdefault(label, found_class)
            if plain_name(class_) != plain_name(found_class):
                raise UserError(
                    f"split file {name}, line {number}: label {label} is '{found_class}' here and "
                    f"'{class_}' elsewhere"
                )
            yield Found(path, uri_of(path), domain, found_class, SPLIT_NAMES[split])


def _split_file_names(source: str, splits: str | None) -> tuple[str, list[str]]:
    """The folder of the split files, below the source, and their names."""
    found = {}
    for folder in (splits,) if splits is not None else SPLIT_FOLDERS:
        url = storage.join(source, folder) if folder else source
        names = [
            name
            for name in storage.names_in(url)
            if SPLIT_FILE.fullmatch(name) and not is_hidden(name)
        ]
        if names:
            found[folder] = sorted(names)
    if not found:
        places = splits or "the source, splits_mini or splits"
        raise UserError(f"source {source}: no DOMAIN_train.txt or DOMAIN_test.txt in {places}")
    if len(found) > 1:
        known = ", ".join(repr(folder or ".") for folder in found)
        raise UserError(f"source {source}: split files in {known}: choose with --splits")
    return next(iter(found.items()))


def _imagenet_sketch(
    source: str, sketch_source: str | None, class_names: str | None, left_out: list[LeftOut]
) -> Iterator[Found]:
    names = read_class_names(class_names) if class_names else imagenet_class_names()
    place = list_source(source)
    yield from _wnid_images(place, names)
    left_out += place.left_out
    if sketch_source:
        sketches = list_source(sketch_source)
        for image in _wnid_images(sketches, names):
            yield replace(image, image_id=f"sketch/{image.image_id}", domain="sketch", split=None)
        left_out += [replace(each, name=f"sketch/{each.name}") for each in sketches.left_out]


def _wnid_images(place: Source, names: Mapping[str, str]) -> Iterator[Found]:
    """Images in folders named by WordNet ids.

    Below a folder with "sketch" in its name they are sketches, which have no split of their own;
    below ``train`` or ``val`` they are ImageNet's.
    """
    for path, n_bytes in place.images:
        folders = path.split("/")[:-1]
        wnid = folders[-1] if folders else ""
        if not WNID.fullmatch(wnid):
            raise UserError(
                f"source {place.url}: '{path}' does not lie in a folder named by a WordNet id, "
                "such as n01440764"
            )
        if wnid not in names:
            raise UserError(
                f"source {place.url}: class {wnid} has no name (--class-names FILE gives one)"
            )
        sketch = any("sketch" in folder.lower() for folder in folders[:-1])
        known = [SPLIT_NAMES[folder] for folder in folders[:-1] if folder in SPLIT_NAMES]
        split = known[-1] if known and not sketch else None
        domain = "sketch" if sketch else "photo"
        yield Found(path, place.uri_of(path), domain, names[wnid], split, n_bytes)


@cache
def imagenet_class_names() -> dict[str, str]:
    """Readable names of ImageNet's 1,000 classes by WordNet id.

    The names are those that CLIP was evaluated with (open_clip), the ids timm's, both in
    ImageNet's order. CLIP's list calls two pairs of classes alike; of these, each goes by the
    first word that WordNet has for it.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    count = Counter(IMAGENET_CLASSNAMES)
    words = [text.split(",")[0] for text in info.label_descriptions()]
    names = [
        name if count[name] == 1 else word
        for name, word in zip(IMAGENET_CLASSNAMES, words, strict=True)
    ]
    return dict(zip(info.label_names(), names, strict=True))


def _vlcs(source: str, left_out: list[LeftOut]) -> Iterator[Found]:
    place = list_source(source)
    # All of them, some ten thousand: what a folder is for depends on those beside it.
    images = [(path, path.split("/"), n_bytes) for path, n_bytes in place.images]
    folders = {tuple(parts[:2]) for _, parts, _ in images}
    copies: set[str] = set()
    for path, parts, n_bytes in images:
        if len(parts) != 4 or parts[1] not in VLCS_SPLITS or parts[2] not in VLCS_CLASSES:
            raise UserError(
                f"source {source}: '{path}' does not lie as domain/split/class/file (split: "
                f"{', '.join(VLCS_SPLITS)}; class: 0 to {len(VLCS_CLASSES) - 1})"
            )
        domain, folder, number, _ = parts
        split: str | None = VLCS_SPLITS[folder]
        if folder == "full" and (domain, "train") in folders:
            copies.add(f"{domain}/{folder}")
            continue
        if folder == "full" and (domain, "test") not in folders:
            split = None
        yield Found(path, place.uri_of(path), domain, VLCS_CLASSES[number], split, n_bytes)
    left_out += place.left_out
    why = "holds the images of train and crossval once more"
    left_out += [LeftOut("unused", name, f"folder {name}: {why}") for name in sorted(copies)]


def _visda(source: str, left_out: list[LeftOut]) -> Iterator[Found]:
    place = list_source(source)
    frames = list(_visda_frames(source, place))
    labelled = {frame.image_id for frame in frames}
    others: list[str] = []
    for path, n_bytes in place.images:
        parts = path.split("/")
        if parts[0] == VISDA_TEST:
            others += [] if path in labelled else [path]
        elif len(parts) == 3 and parts[0] in VISDA_DOMAINS:
            domain = VISDA_DOMAINS[parts[0]]
            yield Found(path, place.uri_of(path), domain, parts[1], None, n_bytes)
        else:
            raise UserError(
                f"source {source}: '{path}' does not lie as train/class/file, "
                "validation/class/file or below test"
            )
    yield from frames
    left_out += place.left_out
    if others and not frames:
        why = f"folder {VISDA_TEST}: has no labels ({VISDA_TEST}/{VISDA_LABELS})"
        left_out.append(LeftOut("unused", VISDA_TEST, why))
    else:
        why = f"is not in {VISDA_TEST}/{VISDA_LABELS}"
        left_out += [LeftOut("unused", path, f"image {path}: {why}") for path in others]


def _visda_frames(source: str, place: Source) -> Iterator[Found]:
    """The test images, which lie in no folders by class, if there is a list of their labels."""
    name = f"{VISDA_TEST}/{VISDA_LABELS}"
    url = storage.join(source, VISDA_TEST, VISDA_LABELS)
    if not storage.exists(url):
        return
    for number, path, label in read_split_file(url, name):
        if label >= len(VISDA_CLASSES):
            raise UserError(
                f"split file {name}, line {number}: label {label} is no class of VisDA's (0 to "
                f"{len(VISDA_CLASSES) - 1})"
            )
        image_id = f"{VISDA_TEST}/{path}"
        class_ = VISDA_CLASSES[label]
        yield Found(image_id, place.uri_of(image_id), VISDA_TEST_DOMAIN, class_)


def _listing(source: str, allow_uri: Sequence[str], may_lack_domain: bool) -> Iterator[Found]:
    uri_of = uri_maker(posixpath.dirname(source.rstrip("/")) or ".")
    needed = NEEDED if may_lack_domain else (*NEEDED, "domain")
    for number, row in read_listing(source, needed):
        place = f"listing {source}, row {number}"
        path, split = row["path"].strip(), row.get("split", "").strip().lower()
        domain = row.get("domain", "").strip() or NO_DOMAIN
        if split and split not in SPLIT_NAMES:
            raise UserError(f"{place}: split '{split}' is not train or test")
        uri = uri_of(path) if storage.is_relative(path) else path
        check_listed(uri, source, allow_uri, place)
        yield Found(path, uri, domain, row["class"], SPLIT_NAMES.get(split))
