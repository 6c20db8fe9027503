"""How data sets lie in folders, and what that says of each image: domain, class, split.

A layout only lists; no image is opened here.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from adu import storage
from adu.data.listing import plain_name, set_aside
from adu.data.uris import check_listed
from adu.errors import UserError
from pipeline.ingestion.lists import WNID, read_class_names, read_listing, read_split_file
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
SHOWN_NAMES = 8

Layout = Literal["domain_class", "split_files", "imagenet_sketch", "listing"]


@dataclass(frozen=True, slots=True)
class Found:
    """An image as the layout tells it.

    Attributes:
        image_id: Its name in the data set, the same wherever the data set lies.
        uri: Where it lies.
        domain: Its domain.
        class_: Its class.
        split: ``train``, ``test`` or None where the layout does not say.
        n_bytes: Its size, where a listing told it.
    """

    image_id: str
    uri: str
    domain: str
    class_: str
    split: str | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class Listed:
    """What a source holds. Every entry of it is either an image or left out.

    Attributes:
        images: Its images, ordered by name.
        left_out: Everything else: files and folders of a source, none of a list of images.
    """

    images: list[Found]
    left_out: list[LeftOut]


def find_images(
    source: str,
    layout: Layout,
    *,
    splits: str | None = None,
    sketch_source: str | None = None,
    class_names: str | None = None,
    allow_uri: Sequence[str] = (),
) -> Listed:
    """Lists the images of a source.

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

    Raises:
        UserError: If there is no source, no image in it in this layout, or two images with one
            name.
    """
    if layout == "domain_class":
        listed = _domain_class(source)
    elif layout == "split_files":
        listed = Listed(_split_files(source, splits), [])
    elif layout == "imagenet_sketch":
        listed = _imagenet_sketch(source, sketch_source, class_names)
    else:
        listed = Listed(_listing(source, allow_uri), [])
    images = sorted(listed.images, key=lambda image: image.image_id)
    if not images:
        raise UserError(
            f"source {source}: has no images (looked for {', '.join(IMAGE_SUFFIXES)}; left out: "
            f"{briefly(listed.left_out)})"
        )
    for one, other in zip(images, images[1:], strict=False):
        if one.image_id == other.image_id:
            raise UserError(f"source {source}: '{one.image_id}' is listed twice")
    if layout != "imagenet_sketch":
        images = _with_one_spelling(images)
    return Listed(images, listed.left_out)


def common_classes(images: Sequence[Found], rule: Literal["same", "intersection"]) -> list[Found]:
    """Sees to it that all domains have the same classes: Mem and For compare over one class set.

    Args:
        images: What was found.
        rule: ``same``: anything else is an error; ``intersection``: classes that a domain lacks
            are left out of all of them.

    Raises:
        UserError: Naming the classes that a domain lacks, or if fewer than two domains are left.
    """
    by_domain: dict[str, set[str]] = {}
    for image in images:
        by_domain.setdefault(image.domain, set()).add(image.class_)
    if len(by_domain) < 2:
        raise UserError(f"source has one domain ({next(iter(by_domain))}): at least 2 are needed")
    everything = set().union(*by_domain.values())
    common = everything.intersection(*by_domain.values())
    if rule == "intersection":
        if not common:
            raise UserError("source: its domains have no class in common")
        return [image for image in images if image.class_ in common]
    lacking = [
        f"domain {domain}: lacks classes that other domains have: {_some(everything - classes)}"
        for domain, classes in sorted(by_domain.items())
        if classes != everything
    ]
    if lacking:
        raise UserError(f"{'; '.join(lacking)} (--classes intersection leaves them out)")
    return list(images)


def assign_splits(images: Sequence[Found], test_fraction: float, seed: int) -> list[Found]:
    """Sets aside a share of each domain and class for testing, where the layout does not say.

    Which images that are depends on the seed and the names alone.
    """
    cells: dict[tuple[str, str], list[Found]] = {}
    for image in images:
        if image.split is None:
            cells.setdefault((image.domain, image.class_), []).append(image)
    test: set[str] = set()
    for cell in cells.values():
        test |= set_aside([image.image_id for image in cell], test_fraction, seed)
    return [
        image
        if image.split is not None
        else replace(image, split="test" if image.image_id in test else "train")
        for image in images
    ]


def _domain_class(source: str) -> Listed:
    place = list_source(source)
    images, elsewhere = [], []
    for path in place.images:
        parts = path.split("/")
        if len(parts) == 3:
            images.append(_found(place, path, parts[0], parts[1]))
        else:
            elsewhere.append(path)
    if elsewhere:
        raise UserError(
            f"source {source}: '{elsewhere[0]}' does not lie as domain/class/file"
            + (f", nor do {len(elsewhere) - 1} more" if len(elsewhere) > 1 else "")
        )
    return Listed(images, place.left_out)


def _split_files(source: str, splits: str | None) -> list[Found]:
    folder, names = _split_file_names(source, splits)
    images: list[Found] = []
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
            images.append(Found(path, uri_of(path), domain, found_class, SPLIT_NAMES[split]))
    return images


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


def _imagenet_sketch(source: str, sketch_source: str | None, class_names: str | None) -> Listed:
    names = read_class_names(class_names) if class_names else imagenet_class_names()
    place = list_source(source)
    images, left_out = _wnid_images(place, names), place.left_out
    if sketch_source:
        sketches = list_source(sketch_source)
        images += [
            replace(image, image_id=f"sketch/{image.image_id}", domain="sketch", split=None)
            for image in _wnid_images(sketches, names)
        ]
        left_out = left_out + [
            replace(each, name=f"sketch/{each.name}") for each in sketches.left_out
        ]
    return Listed(images, left_out)


def _wnid_images(place: Source, names: Mapping[str, str]) -> list[Found]:
    """Images in folders named by WordNet ids.

    Below a folder with "sketch" in its name they are sketches, which have no split of their own;
    below ``train`` or ``val`` they are ImageNet's.
    """
    images = []
    for path in place.images:
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
        image = _found(place, path, "sketch" if sketch else "photo", names[wnid])
        images.append(replace(image, split=split))
    return images


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


def _listing(source: str, allow_uri: Sequence[str]) -> list[Found]:
    uri_of = uri_maker(posixpath.dirname(source.rstrip("/")) or ".")
    images = []
    for number, row in read_listing(source):
        place = f"listing {source}, row {number}"
        path, split = row["path"].strip(), row.get("split", "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise UserError(f"{place}: split '{split}' is not train or test")
        uri = uri_of(path) if storage.is_relative(path) else path
        check_listed(uri, source, allow_uri, place)
        images.append(Found(path, uri, row["domain"], row["class"], SPLIT_NAMES.get(split)))
    return images


def _found(place: Source, path: str, domain: str, class_: str) -> Found:
    return Found(path, place.uri_of(path), domain, class_, None, place.images[path])


def _with_one_spelling(images: Sequence[Found]) -> list[Found]:
    """Gives domains and classes their plain names.

    Spellings of a class that differ in hyphens alone are one class too; the commoner one stays.
    """
    plain_class = {name: plain_name(name) for name in {image.class_ for image in images}}
    plain_domain = {name: plain_name(name) for name in {image.domain for image in images}}
    count = Counter(plain_class[image.class_] for image in images)
    spelling: dict[str, str] = {}
    for name in sorted(count, key=lambda name: (-count[name], name)):
        spelling.setdefault(name.replace("-", "_"), name)
    return [
        replace(
            image,
            domain=plain_domain[image.domain],
            class_=spelling[plain_class[image.class_].replace("-", "_")],
        )
        for image in images
    ]


def _some(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
