"""Listings as the few images that tests have."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple

import pyarrow as pa

from pipeline.ingestion.layouts import find_images
from pipeline.ingestion.listing import LISTED_SCHEMA, Found
from pipeline.ingestion.sources import LeftOut
from pipeline.ingestion.splits import draw_limits, with_splits


def found_in(*arguments: object, **options: object) -> tuple[list[Found], list[LeftOut]]:
    """What `find_images` lists, in memory."""
    with contextlib.closing(find_images(*arguments, **options)) as listing:
        images = [Found(*row.values()) for block in listing.rows() for row in block.to_pylist()]
        return images, sorted(listing.left_out, key=lambda each: each.name)


def rows_of(images: Sequence[Found]) -> pa.Table:
    """The images as rows of a listing."""
    columns = zip(*map(astuple, images), strict=True)
    return pa.table([pa.array(column) for column in columns], names=LISTED_SCHEMA.names).cast(
        LISTED_SCHEMA
    )


def drawn(images: Sequence[Found], fraction: float, seed: int) -> list[Found]:
    """The images with their splits."""
    rows = [rows_of(images)]
    limits = draw_limits(rows, fraction, seed)
    blocks = with_splits(rows, limits, seed)
    return [Found(*row.values()) for block in blocks for row in block.to_pylist()]


def cells_of(images: Sequence[Found]) -> Counter[tuple[str, str]]:
    """How many there are of each domain and class."""
    return Counter((image.domain, image.class_) for image in images)
