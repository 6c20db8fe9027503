"""Writes a Parquet manifest of a folder or bucket of images.

    python pipeline/ingest.py --source URL --out URL [--layout LAYOUT] [--pack]

Every image is read once, decoded fully and hashed; the ones that cannot be used are left out, and
a report says what was noticed. Started again, an ingest that was killed goes on where it was. Where
nothing says which images are for testing, a fixed share of each domain and class is set aside for
it, by the hash of the image's name.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from adu import storage
from adu.data.images import cores
from adu.data.manifest import CARD_FILE, Manifest
from adu.data.shards import SHARD_FOLDER
from adu.data.uris import elsewhere
from adu.data.writing import write_manifest
from adu.errors import UserError
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, run_command
from pipeline.ingestion.checked import CheckedRows
from pipeline.ingestion.checks import CheckResult
from pipeline.ingestion.config import LOCAL, IngestConfig
from pipeline.ingestion.image_reader import ReadSettings
from pipeline.ingestion.layouts import find_images
from pipeline.ingestion.listing import Cell, common_classes, of_classes, of_split
from pipeline.ingestion.pieces import (
    GUESSED_BYTES,
    Journal,
    Piece,
    loose_pieces,
    packed_pieces,
    piece_images,
)
from pipeline.ingestion.report import (
    ReadProgress,
    decoders_apart,
    images_table,
    show_checks,
    show_entries,
)
from pipeline.ingestion.sources import LeftOut
from pipeline.ingestion.splits import draw_limits, with_splits
from pipeline.ingestion.spread import (
    ReadPieces,
    read_all,
    read_here,
    read_in_processes,
    read_on_cluster,
)
from pipeline.names import shown

if TYPE_CHECKING:
    from pipeline.ingestion.pseudo_domains import PseudoDomains

SHORTCUTS: dict[str, str] = {}
MIB = 2**20
# A process for fewer images would take longer to start than to read them; or with packing, might
# have none, since a shard is one process's.
IMAGES_PER_PROCESS = 1500
SHARDS_PER_PROCESS = 4


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
    listing = find_images(
        config.source,
        config.layout,
        splits=config.splits,
        sketch_source=config.sketch_source,
        class_names=config.class_names,
        allow_uri=config.allow_uri,
        may_lack_domain=config.n_styles is not None,
    )
    with contextlib.closing(listing), CheckedRows(listing.n_images) as checked:
        kept = _classes_to_read(listing.plain_cells(), config)
        limits = draw_limits(of_classes(listing.rows(), kept), config.test_fraction, config.seed)
        storage.check_reachable(config.out, write=True)
        journal = Journal(config.out, config.identity)

        def pieces() -> Iterator[Piece]:
            rows = with_splits(of_classes(listing.rows(), kept), limits, config.seed)
            if not config.pack:
                return loose_pieces(rows, piece_images(listing.n_images))
            # What is read together, a whole test split, lies together.
            rest = with_splits(of_classes(listing.rows(), kept), limits, config.seed)
            ordered = chain(of_split(rows, "test"), of_split(rest, "train"))
            return packed_pieces(ordered, config.shard_mib * MIB)

        # What is packed behind a broken image need not be packed anew, unless it may be mended.
        known = journal.known(again=config.strict or not config.pack)
        with ReadProgress(console, listing.n_images) as progress:
            read = _read_pieces(config, journal, listing.n_images)
            parts = read_all(pieces, known, read, progress.start, progress.advance)
        pseudo = _pseudo_domains(config, listing.plain_cells(), map(journal.read, parts))
        for part in parts:
            read_rows = journal.read(part)
            checked.add(read_rows if pseudo is None else pseudo.filled(read_rows))
        checked.leave_out(_without_output(listing.left_out, config), listed=False)
        if not kept.issuperset(class_ for _, class_ in listing.plain_cells()):
            checked.lack(of_classes(listing.rows(), kept, others=True))
        listing.close()  # its place on the disk is wanted
        return _written(config, checked, journal, pseudo, console)


def _read_pieces(config: IngestConfig, journal: Journal, n_images: int) -> ReadPieces:
    """Where the images are read: on this machine, or on the nodes of a cluster."""
    address = config.address or os.environ.get("RAY_ADDRESS") or LOCAL
    if address != LOCAL:
        from pipeline.executors.cluster import connect  # Ray takes seconds

        connect(address)
        settings = _read_settings(config, config.n_threads, decoders=1)
        return read_on_cluster(settings, journal, [config.source, config.out])
    n_processes = min(cores(), config.n_threads, _enough_for(n_images, config))
    # A model in every process would take too much memory.
    if n_processes < 2 or config.backbone is not None:
        return read_here(_read_settings(config, config.n_threads, cores()), journal)
    settings = _read_settings(config, config.n_threads // n_processes, decoders=1)
    return read_in_processes(settings, journal, n_processes)


def _enough_for(n_images: int, config: IngestConfig) -> int:
    """For how many processes there are images enough."""
    if config.pack:
        return n_images * GUESSED_BYTES // (SHARDS_PER_PROCESS * config.shard_mib * MIB)
    return n_images // IMAGES_PER_PROCESS


def _read_settings(config: IngestConfig, threads: int, decoders: int) -> ReadSettings:
    return ReadSettings(
        config.out, threads, decoders, config.pack, config.pack_short_side, config.backbone
    )


def _classes_to_read(cells: Mapping[Cell, int], config: IngestConfig) -> set[str]:
    """The classes that all domains have; all of them, as long as domains are not known."""
    if config.n_styles is None or config.backbone is None:
        return common_classes(cells, config.classes)
    from adu.models.openclip import image_side  # torch takes seconds
    from pipeline.ingestion.pseudo_domains import check_styles

    check_styles(cells, config.n_styles)
    image_side(config.backbone)  # told now, not by whoever reads the first image
    return {class_ for _, class_ in cells}


def _pseudo_domains(
    config: IngestConfig, cells: Mapping[Cell, int], read: Iterable[pa.Table]
) -> PseudoDomains | None:
    if config.n_styles is None or config.backbone is None:
        return None
    from pipeline.ingestion.pseudo_domains import find_domains

    return find_domains(read, cells, config.n_styles, config.backbone)


def _written(
    config: IngestConfig,
    checked: CheckedRows,
    journal: Journal,
    pseudo: PseudoDomains | None,
    console: Console | None,
) -> Manifest:
    """Shows what was found, and writes the manifest."""
    if not checked.cells:
        raise UserError(
            f"source {config.source}: none of its {checked.n_unusable} images can be used "
            f"({checked.reasons[0][1]})"
        )
    results = checked.check(config.classes, config.shots + config.val_shots)
    if console:
        show_checks(console, results, [reason for _, reason in checked.reasons])
        show_entries(console, checked.entries)
        if pseudo is not None:
            console.print(pseudo.report, soft_wrap=True)
    if config.strict:
        _refuse(results)
    manifest = write_manifest(
        config.out,
        checked.rows(),
        name=config.name or _name_of(config.source),
        source=_absolute(config.source),
        synthetic=config.synthetic,
        rejected=[{"image_id": name, "reason": reason} for name, reason in checked.reasons],
        checks={result.name: result.card for result in results},
        entries=checked.entries,
        pseudo_domains=None if pseudo is None else pseudo.card,
    )
    journal.remove()
    _remove_stray_shards(config.out, manifest)
    return manifest


def _without_output(left_out: Iterable[LeftOut], config: IngestConfig) -> list[LeftOut]:
    """Leaves out what an ingest has written itself, where its output lies in its source."""
    inside = _absolute(config.out).removeprefix(f"{_absolute(config.source).rstrip('/')}/")
    own = f"{inside.rstrip('/')}/"
    return [each for each in left_out if not f"{each.name}/".startswith(own)]


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
