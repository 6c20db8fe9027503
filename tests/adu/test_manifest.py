"""Manifests: a digest of the content alone, few-shot splits that never change, clear refusals."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from adu import storage
from adu.errors import UserError
from adu.manifest import CARD_FILE, content_digest, load_manifest, write_manifest


def rows(per_cell=6, prefix="/data/"):
    return [
        {
            "image_id": f"{domain}/{class_}/{i}.png",
            "uri": f"{prefix}{domain}/{class_}/{i}.png",
            "domain": domain,
            "class": class_,
            "split": "test" if i < 2 else "train",
            "width": 8,
            "height": 8,
            "bytes": 10,
            "sha256": f"{domain}{class_}{i}",
        }
        for domain in ("sketch", "photo")
        for class_ in ("dog", "cat")
        for i in range(per_cell)
    ]


def write(url, its_rows):
    return write_manifest(str(url), its_rows, name="pets", source="/data")


def ids(manifest, row_numbers):
    return {manifest.table["image_id"][int(row)].as_py() for row in row_numbers}


def test_a_manifest_comes_back_as_written(tmp_path):
    written = write(tmp_path / "m", rows())
    loaded = load_manifest(str(tmp_path / "m"))
    assert loaded == written
    assert (loaded.classes, loaded.domains) == (("cat", "dog"), ("photo", "sketch"))
    assert loaded.cell_counts("train") == {
        (d, c): 4 for d in ("photo", "sketch") for c in ("cat", "dog")
    }


def test_the_digest_ignores_order_and_place_but_no_content():
    digest = content_digest(rows())
    shuffled = rows(prefix="s3://elsewhere/")
    random.Random(0).shuffle(shuffled)
    assert content_digest(shuffled) == digest
    for column in ("domain", "class", "split", "sha256"):
        changed = rows()
        changed[3] = {**changed[3], column: "other"}
        assert content_digest(changed) != digest


def test_few_shot_splits_do_not_depend_on_row_order(tmp_path):
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    a, b = write(tmp_path / "a", rows()), write(tmp_path / "b", shuffled)
    split_a, split_b = a.few_shot_split(2, 1, 0), b.few_shot_split(2, 1, 0)
    assert ids(a, split_a.train_rows) == ids(b, split_b.train_rows)
    assert ids(a, split_a.val_rows) == ids(b, split_b.val_rows)


def test_few_shot_splits_are_pinned():
    # A different draw would silently make results incomparable with those of before.
    manifest = write("memory://pinned", rows())
    train = sorted(ids(manifest, manifest.few_shot_split(1, 1, seed=7).train_rows))
    assert train == ["photo/cat/5.png", "photo/dog/3.png", "sketch/cat/2.png", "sketch/dog/2.png"]


def test_train_val_and_test_are_disjoint_and_of_the_asked_size(tmp_path):
    manifest = write(tmp_path / "m", rows())
    split = manifest.few_shot_split(shots=2, val_shots=2, seed=0)
    parts = [split.train_rows, split.val_rows, manifest.test_rows()]
    assert [len(part) for part in parts] == [8, 8, 8]
    assert len(np.unique(np.concatenate(parts))) == 24


def test_another_seed_draws_other_images(tmp_path):
    manifest = write(tmp_path / "m", rows(per_cell=20))
    first, second = (ids(manifest, manifest.few_shot_split(4, 1, s).train_rows) for s in (0, 1))
    assert first != second


def test_too_few_images_are_told_with_the_cell(tmp_path):
    manifest = write(tmp_path / "m", rows()[:-1])
    with pytest.raises(UserError, match="photo/cat has 3 .* 2 shots [+] 2 validation shots$"):
        manifest.few_shot_split(2, 2, 0)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "has no card.json .write one with"),
        (b"not json", "is not one"),
        (b"{}", "is not one"),
        (json.dumps({"schema_version": 99}).encode(), "schema version 99 is newer than 2"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, card, message):
    if card is not None:
        (tmp_path / CARD_FILE).write_bytes(card)
    with pytest.raises(UserError, match=message):
        load_manifest(str(tmp_path))


def test_an_empty_manifest_is_refused(tmp_path):
    write(tmp_path / "m", [])
    with pytest.raises(UserError, match="holds no images"):
        load_manifest(str(tmp_path / "m"))


def test_the_card_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(storage, "write_bytes", lambda url, _: written.append(url))
    write(tmp_path / "m", rows())
    assert written[-1].endswith(CARD_FILE)


def test_a_manifest_of_version_1_is_still_read(tmp_path):
    written = write(tmp_path, rows())
    table = written.table.drop_columns(["flags", "shard", "shard_row"])
    (tmp_path / CARD_FILE).unlink()
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    pq.write_table(table, tmp_path / "manifest.parquet")
    names = ["name", "source", "synthetic", "digest", "classes", "domains"]
    card = {"schema_version": 1} | {name: getattr(written, name) for name in names}
    (tmp_path / CARD_FILE).write_text(json.dumps(card))
    loaded = load_manifest(str(tmp_path))
    assert loaded.columns(["image_id", "shard", "flags"], [5, 1]).to_pydict() == {
        "image_id": [table["image_id"][5].as_py(), table["image_id"][1].as_py()],
        "shard": [None, None],
        "flags": [None, None],
    }
