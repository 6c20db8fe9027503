"""Images of a manifest, fetched and decoded: loose or packed, checked, in bounded memory."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adu.data import reading
from adu.data.decoded import eval_batch
from adu.data.manifest import load_manifest
from adu.data.preprocess import ImageTransform
from adu.data.reading import READ_LOG_VARIABLE, read_images, stored, stream_views
from adu.data.shards import write_shard
from adu.data.writing import write_manifest
from adu.errors import UserError
from tests.tiny import tiny_manifest

TRANSFORM = ImageTransform(32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
WHOLE = stored(None)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_manifest(str(tiny_manifest(tmp_path_factory.mktemp("data"))))


def test_images_do_not_depend_on_the_number_of_threads(manifest):
    one, many = (read_images(manifest, range(20), WHOLE, threads) for threads in (1, 8))
    assert one.image_ids == many.image_ids
    assert all(torch.equal(one.image(i), many.image(i)) for i in range(20))


def test_large_images_are_kept_small(manifest):
    images = read_images(manifest, [0], stored(18), 1)
    assert min(images.image(0).shape[1:]) == 18


def test_an_image_that_changed_since_ingest_is_named(tmp_path):
    manifest = load_manifest(str(tiny_manifest(tmp_path)))
    uri = manifest.table["uri"][0].as_py()
    Image.new("RGB", (9, 9)).save(uri)
    with pytest.raises(UserError, match=f"{os.path.basename(uri)}: has changed"):  # noqa: PTH119
        read_images(manifest, [0], WHOLE, 1)


def test_streaming_reads_only_what_is_asked_for(manifest, tmp_path, monkeypatch):
    log = tmp_path / "reads"
    monkeypatch.setenv(READ_LOG_VARIABLE, str(log))
    blocks = stream_views(manifest, manifest.test_rows(), TRANSFORM, 4, 2)
    assert not log.exists()
    next(blocks)
    assert len(log.read_text().splitlines()) <= 8


def test_streaming_gives_every_image_once_with_its_labels(manifest):
    rows = manifest.test_rows()
    blocks = list(stream_views(manifest, rows, TRANSFORM, 5, 2))
    ids = [image_id for block in blocks for image_id in block.image_ids]
    assert ids == manifest.table["image_id"].take(rows).to_pylist()
    for block in blocks:
        for c, d, image_id in zip(block.class_N, block.domain_N, block.image_ids, strict=True):
            assert image_id.startswith(f"{manifest.domains[d]}/{manifest.classes[c]}/")


def test_views_are_what_evaluation_makes_of_the_images(manifest):
    rows = manifest.test_rows()
    whole = read_images(manifest, rows, WHOLE, 2)
    (views,) = stream_views(manifest, rows, TRANSFORM, len(rows), 2)
    everything = range(len(rows))
    assert torch.equal(
        eval_batch(views, everything, TRANSFORM), eval_batch(whole, everything, TRANSFORM)
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory, manifest):
    """The same images in two shards, in another order."""
    folder = tmp_path_factory.mktemp("packed")
    rows = manifest.table.to_pylist()
    order = np.random.default_rng(0).permutation(len(rows))
    for number, members in enumerate(np.array_split(order, 2)):
        images = [(rows[i]["image_id"], Path(rows[i]["uri"]).read_bytes()) for i in members]
        shard = write_shard(str(folder), number, images)
        for place, i in enumerate(members):
            rows[i] |= {"shard": shard, "shard_row": place}
    return write_manifest(str(folder), rows, name="packed", source="tests")


def test_packed_images_are_the_same(manifest, packed):
    rows = [40, 3, 17, 3, 60]
    loose, found = (read_images(each, rows, WHOLE, 2) for each in (manifest, packed))
    assert loose.image_ids == found.image_ids
    assert all(torch.equal(loose.image(i), found.image(i)) for i in range(len(rows)))


def test_a_shard_of_other_images_is_told(packed, tmp_path):
    rows = packed.table.to_pylist()
    rows[5]["shard_row"] ^= 1
    write_manifest(str(tmp_path), rows, name="wrong", source="tests")
    wrong = replace(load_manifest(str(tmp_path)), url=packed.url)
    with pytest.raises(UserError, match="has changed since"):
        read_images(wrong, [5], WHOLE, 1)


def test_large_shards_are_fetched_in_pieces(packed, manifest, monkeypatch):
    monkeypatch.setattr(reading, "SHARD_PIECE_BYTES", 10_000)
    monkeypatch.setattr(reading, "AHEAD_BYTES", 1)
    rows = range(manifest.n_images)
    loose, found = (read_images(each, rows, WHOLE, 2) for each in (manifest, packed))
    assert all(torch.equal(loose.image(i), found.image(i)) for i in rows)
