"""Writes a Parquet manifest of a folder or bucket of images.

    python pipeline/ingest.py --source URL --out URL [--layout LAYOUT] [--pack]

Every image is read once, decoded fully and hashed; the ones that cannot be used are left out, and
a report says what was noticed. Started again, an ingest that was killed goes on where it was. Where
nothing says which images are for testing, a fixed share of each domain and class is set aside for
it, by the hash of the image's name.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from rich.console import Console

from adu import storage
from adu.config import StrictModel
from adu.data.images import cores
from adu.data.manifest import CARD_FILE, Manifest
from adu.data.rows import SCHEMA
from adu.data.shards import SHARD_FOLDER
from adu.data.uris import elsewhere
from adu.data.writing import write_manifest
from adu.errors import UserError
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, run_command
from pipeline.ingestion.image_checks import FLAGS, CheckResult, check_results, same_images
from pipeline.ingestion.image_reader import Journal, Packing, ReadSettings, read_all
from pipeline.ingestion.layouts import (
    Found,
    Layout,
    Listed,
    assign_splits,
    common_classes,
    find_images,
)
from pipeline.ingestion.report import (
    ReadProgress,
    decoders_apart,
    images_table,
    show_checks,
    show_entries,
)
from pipeline.ingestion.sources import LeftOut
from pipeline.names import shown

SHORTCUTS: dict[str, str] = {}
MIB = 2**20
THREADS_PER_CORE = 2
STORE_THREADS = 16


class IngestConfig(StrictModel):
    """Write a manifest of a folder or bucket of images."""

    source: str = Field(description="folder or URL of the images; the file for layout listing")
    out: str = Field(description="folder or URL of the manifest to write")
    layout: Layout = Field(
        "domain_class",
        description="domain_class: DOMAIN/CLASS/FILE; split_files: lists DOMAIN_train.txt and "
        "DOMAIN_test.txt of 'path label'; imagenet_sketch: folders by WordNet id; listing: CSV or "
        "Parquet with path, class, domain and perhaps split",
    )
    splits: str | None = Field(None, description="split_files: folder of the lists in the source")
    sketch_source: str | None = Field(
        None, description="imagenet_sketch: the sketches, if they do not lie in the source"
    )
    class_names: str | None = Field(
        None, description="imagenet_sketch: file of 'wnid name'; unset: CLIP's names of the 1,000"
    )
    allow_uri: tuple[str, ...] = Field(
        (), description="listing: where images may lie beside below its folder: URI prefixes"
    )
    classes: Literal["same", "intersection"] = Field(
        "same", description="intersection: leave out the classes that a domain lacks"
    )
    name: str | None = Field(None, description="name of the data set; unset: the source's")
    test_fraction: float = Field(
        0.5, gt=0, lt=1, description="share set aside for testing, where the layout has no split"
    )
    seed: int = Field(0, ge=0, description="which images are set aside")
    pack: bool = Field(False, description="write the images too, in shards beside the manifest")
    pack_short_side: int | None = Field(
        None, ge=1, description="reduce packed images to this short side; unset: bytes as they are"
    )
    shard_mib: int = Field(256, ge=1, description="size of a shard")
    shots: int = Field(8, ge=1, description="training images that a class should have in a domain")
    val_shots: int = Field(4, ge=1, description="validation images that it should have beside")
    strict: bool = Field(False, description="write nothing if any check finds anything")
    overwrite: bool = Field(False, description="replace a manifest that is already there")
    threads: int | None = Field(
        None,
        ge=1,
        description="images read at a time; unset: 2 a core from files here, 16 from a store",
    )
    save_every_s: float = Field(
        10, ge=0, description="seconds of reading that are lost at most if it is killed"
    )
    synthetic: bool = Field(False, description="mark the images as made up by a program")

    @model_validator(mode="after")
    def _options_fit(self) -> IngestConfig:
        if self.pack_short_side is not None and not self.pack:
            raise ValueError("pack_short_side needs pack")
        for option, layout in (
            ("splits", "split_files"),
            ("sketch_source", "imagenet_sketch"),
            ("class_names", "imagenet_sketch"),
            ("allow_uri", "listing"),
        ):
            if getattr(self, option) not in (None, ()) and self.layout != layout:
                raise ValueError(f"{option} is for layout {layout}, not {self.layout}")
        return self

    @property
    def n_threads(self) -> int:
        """Images read at a time. Threads that wait for no store get into each other's way."""
        here = storage.is_local(self.source)
        return self.threads or (THREADS_PER_CORE * cores() if here else STORE_THREADS)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two ingests to one place the same, so that one may go on with the other."""
        no_part = {"classes", "name", "shots", "val_shots", "strict", "overwrite", "threads"}
        no_part |= {"out", "save_every_s", "synthetic", "allow_uri"}
        return self.model_dump(mode="json", exclude=no_part)


def ingest(config: IngestConfig, console: Console | None = None) -> Manifest:
    """Reads the images and writes their manifest.

    Args:
        config: What to read and where to write.
        console: Where to show progress and what the checks found; None for nowhere.

    Raises:
        UserError: If the source has no images in the layout, a check found something and
            ``strict`` is set, or the manifest exists or cannot be written. No manifest is written
            then; what has been read is kept beside it for the next try.
    """
    if storage.exists(storage.join(config.out, CARD_FILE)) and not config.overwrite:
        raise UserError(f"manifest {config.out}: exists already (--overwrite replaces it)")
    listed = find_images(
        config.source,
        config.layout,
        splits=config.splits,
        sketch_source=config.sketch_source,
        class_names=config.class_names,
        allow_uri=config.allow_uri,
    )
    listed = _without_output(listed, config)
    images = assign_splits(
        common_classes(listed.images, config.classes), config.test_fraction, config.seed
    )
    storage.check_reachable(config.out, write=True)
    journal = Journal(config.out, config.identity)
    packing = Packing(config.pack_short_side, config.shard_mib * MIB) if config.pack else None
    settings = ReadSettings(
        config.out, config.n_threads, packing, config.save_every_s, config.strict
    )
    with ReadProgress(console, len(images)) as progress:
        read = read_all(images, settings, journal, progress.start, progress.advance)
    table, unusable = _joined(images, read, config)
    left_out = [*listed.left_out, *unusable, *_lacking(listed, table, unusable)]
    table, results = _checked(table, left_out, config)
    entries = _entries(listed, table, left_out)
    reasons = sorted((each.name, each.reason) for each in left_out if each.reason)
    if console:
        show_checks(console, results, [reason for _, reason in reasons])
        show_entries(console, entries)
    if config.strict:
        _refuse(results)
    manifest = write_manifest(
        config.out,
        table,
        name=config.name or _name_of(config.source),
        source=_absolute(config.source),
        synthetic=config.synthetic,
        rejected=[{"image_id": name, "reason": reason} for name, reason in reasons],
        checks={result.name: result.card for result in results},
        entries=entries,
    )
    journal.remove()
    _remove_stray_shards(config.out, manifest)
    return manifest


def _without_output(listed: Listed, config: IngestConfig) -> Listed:
    """Leaves out what an ingest has written itself, where its output lies in its source."""
    inside = _absolute(config.out).removeprefix(f"{_absolute(config.source).rstrip('/')}/")
    others = [
        each for each in listed.left_out if not f"{each.name}/".startswith(f"{inside.rstrip('/')}/")
    ]
    return Listed(listed.images, others)


def _joined(
    images: Sequence[Found], read: pa.Table, config: IngestConfig
) -> tuple[pa.Table, list[LeftOut]]:
    """What the layout and what the files say of each usable image, and the unusable ones."""
    rejected = read.filter(pc.is_valid(read["problem"]))
    unusable = [
        LeftOut(row["problem"], row["image_id"], row["reason"])
        for row in rejected.select(["problem", "image_id", "reason"]).to_pylist()
    ]
    names = {each.name for each in unusable}
    usable = [image for image in images if image.image_id not in names]
    if not usable:
        raise UserError(
            f"source {config.source}: none of its {len(images)} images can be used "
            f"({unusable[0].reason})"
        )
    usable = common_classes(usable, config.classes)
    ids = pa.array([image.image_id for image in usable], pa.string())
    found = read.take(pc.index_in(ids, value_set=read["image_id"].combine_chunks()))
    columns = {
        "uri": [image.uri for image in usable],
        "domain": [image.domain for image in usable],
        "class": [image.class_ for image in usable],
        "split": [image.split for image in usable],
    }
    for name, values in columns.items():
        found = found.append_column(name, pa.array(values, pa.string()))
    return found, unusable


def _lacking(listed: Listed, table: pa.Table, unusable: Sequence[LeftOut]) -> list[LeftOut]:
    """Images that are left out because a domain lacks their class, or lost it to broken images."""
    told = {*table["image_id"].to_pylist(), *(each.name for each in unusable)}
    ids = (image.image_id for image in listed.images)
    return [LeftOut("class_lacking", image_id) for image_id in ids if image_id not in told]


def _entries(listed: Listed, table: pa.Table, left_out: Sequence[LeftOut]) -> dict[str, int]:
    """How many entries the source has, and what became of them."""
    found = len(listed.images) + len(listed.left_out)
    flags = table["flags"].to_pylist()
    converted = sum(not set(FLAGS).isdisjoint(its or ()) for its in flags)
    entries = {
        "found": found,
        "used": len(flags) - converted,
        "converted": converted,
        "left_out": len(left_out),
    }
    assert found == len(flags) + len(left_out), f"entries do not add up: {entries}"
    return entries


def _checked(
    table: pa.Table, left_out: Sequence[LeftOut], config: IngestConfig
) -> tuple[pa.Table, list[CheckResult]]:
    """Runs the checks over all images; gives the rows with their flags, and what was found."""
    found: dict[str, list[str]] = {}
    for each in sorted(left_out, key=lambda each: each.name):
        found.setdefault(each.check, []).append(each.name)
    flags: list[list[str]] = [its or [] for its in table["flags"].to_pylist()]
    ids = table["image_id"]
    warnings = table["warnings"].to_pylist()
    for row, its in enumerate(flags):
        for flag in its:
            found.setdefault(flag, []).append(ids[row].as_py())
        if warnings[row]:
            its.append("warned")
            found.setdefault("warned", []).append(f"{ids[row].as_py()}: {warnings[row][0]}")
    pairs, rows_of = same_images(table)
    found |= pairs
    for check, rows in rows_of.items():
        for row in rows.tolist():
            flags[row].append(check)
    found["few_shots"] = _too_small_cells(table, config.shots + config.val_shots)
    flagged = pa.array([its or None for its in flags], SCHEMA.field("flags").type)
    table = table.set_column(table.schema.get_field_index("flags"), "flags", flagged)
    return table.select(SCHEMA.names).cast(SCHEMA), check_results(found)


def _too_small_cells(table: pa.Table, at_least: int) -> list[str]:
    cells = Counter(
        zip(table["domain"].to_pylist(), table["class"].to_pylist(), strict=True)
    )  # every domain has every class: cells without training images are among these
    training = table.filter(pc.equal(table["split"], "train"))
    count = Counter(zip(training["domain"].to_pylist(), training["class"].to_pylist(), strict=True))
    small = ((domain, class_, count[domain, class_]) for domain, class_ in sorted(cells))
    return [f"{domain}/{class_} ({n})" for domain, class_, n in small if n < at_least]


def _refuse(results: Sequence[CheckResult]) -> None:
    found = [result for result in results if result.count]
    if not found:
        return
    told = ", ".join(f"{r.name} {r.count} ({r.examples[0]})" for r in found)
    raise UserError(
        f"{len(found)} of {len(results)} checks found something: {told} "
        "(--strict; what was read is kept, so a next try reads only what has changed)"
    )


def _absolute(source: str) -> str:
    """The source as it is known from anywhere: rows may lie below it."""
    return storage.local_path(source) if storage.is_local(source) else source


def _name_of(source: str) -> str:
    place = os.path.normpath(_absolute(source)) if storage.is_local(source) else source
    name = re.sub(r"\.(csv|tsv|txt|parquet)$", "", place.rstrip("/").rsplit("/", 1)[-1])
    return name or "images"


def _remove_stray_shards(out: str, manifest: Manifest) -> None:
    """Removes shards that no manifest names: an ingest that was given up has left them."""
    folder = storage.join(out, SHARD_FOLDER)
    ours = re.compile(r"\d{5,}-[0-9a-f]{12}\.parquet")
    names = [name for name in storage.names_in(folder) if ours.fullmatch(name)]
    if not names:
        return
    shards = pc.unique(manifest.columns(["shard"])["shard"]).to_pylist()
    for name in names:
        if f"{SHARD_FOLDER}/{name}" not in shards:
            storage.remove(storage.join(folder, name))


def run(config: IngestConfig) -> int:
    """The command's body: ingest and say what came of it."""
    with decoders_apart() as console:
        return _run(config, console)


def _run(config: IngestConfig, console: Console) -> int:
    try:
        manifest = ingest(config, console)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on where it was")
        return EXIT_INTERRUPTED
    console.print(images_table(manifest))
    console.print(f"manifest {shown(manifest.url)}", soft_wrap=True)
    console.print(f"digest   {manifest.digest}", soft_wrap=True)
    for place in _places_elsewhere(manifest):
        console.print(
            f"images lie in {shown(place)}: use it with --context.data.allow-uri {shown(place)}",
            soft_wrap=True,
        )
    return EXIT_OK


def _places_elsewhere(manifest: Manifest) -> list[str]:
    """Where images lie that nobody opens without being told that they may: buckets, a folder."""
    uris = list(elsewhere(manifest))
    places = {"/".join(uri.split("/")[:3]) for uri in uris if not storage.is_local(uri)}
    folders = [posixpath.dirname(uri) for uri in uris if storage.is_local(uri)]
    return sorted(places) + ([posixpath.commonpath(folders)] if folders else [])


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(IngestConfig, run, SHORTCUTS, argv)


if __name__ == "__main__":
    sys.exit(main())
