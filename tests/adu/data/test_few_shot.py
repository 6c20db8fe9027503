"""The few-shot split: a draw that never changes, of the asked size, out of three columns."""

import hashlib
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from adu.data.few_shot import smallest_first
from adu.data.manifest import load_manifest
from adu.errors import UserError
from tests.adu.data.manifests import ids, rows, write


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


def test_a_few_shot_split_reads_neither_places_nor_hashes(split_in_files, monkeypatch):
    read = []
    read_row_group = pq.ParquetFile.read_row_group

    def noted(self, group, columns):
        read.extend(columns)
        return read_row_group(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    manifest = load_manifest(split_in_files.url)
    manifest.few_shot_split(2, 1, 0)
    assert set(read) == {"domain", "class", "split", "image_id"}


def test_few_shot_splits_are_the_smallest_hashes_of_each_cell(split_in_files):
    table = split_in_files.table.to_pylist()
    train, val = [], []
    for domain in ("photo", "sketch"):
        for class_ in ("cat", "dog"):
            cell = [
                i
                for i, row in enumerate(table)
                if (row["domain"], row["class"], row["split"]) == (domain, class_, "train")
            ]
            cell.sort(key=lambda i: hashlib.sha256(f"3/{table[i]['image_id']}".encode()).digest())
            train, val = train + cell[:2], val + cell[2:3]
    split = split_in_files.few_shot_split(2, 1, 3)
    assert split.train_rows.tolist() == train
    assert split.val_rows.tolist() == val


def test_equal_first_words_of_hashes_are_told_apart_by_the_rest():
    hashes = np.array([[5, 9, 0, 2], [5, 9, 0, 1], [4, 0, 0, 0], [1, 0, 0, 0]], np.uint64)
    cells = np.array([0, 0, 0, 1])
    assert smallest_first(cells, hashes).tolist() == [2, 1, 0, 3]


def test_all_that_is_beyond_the_shots_is_for_validation_up_to_a_limit(split_in_files, monkeypatch):
    whole = split_in_files.few_shot_split(2, "all", 0)
    trained = split_in_files.few_shot_split(2, 1, 0).train_rows
    assert whole.train_rows.tolist() == trained.tolist()
    n_train = sum(split_in_files.cell_counts("train").values())
    assert len(whole.train_rows) + len(whole.val_rows) == n_train
    # The first ones are those that fewer validation shots would be.
    first = whole.val_rows[whole.val_places < 1]
    assert first.tolist() == split_in_files.few_shot_split(2, 1, 0).val_rows.tolist()
    n_cells = len(split_in_files.cell_counts("train"))
    monkeypatch.setattr("adu.data.manifest.MOST_VAL_IMAGES", 2 * n_cells)
    assert len(split_in_files.few_shot_split(1, "all", 0).val_rows) <= 2 * n_cells
