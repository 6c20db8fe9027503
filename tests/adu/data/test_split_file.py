"""A few-shot split in a file: the same images, and not one row of the manifest for who reads it."""

import pytest
import torch

from adu.context import load_context
from adu.data.decoded import DataConfig, select_images
from adu.data.manifest import described_manifest, load_manifest
from adu.data.split_file import read_split, write_split
from adu.errors import UserError
from tests.tiny import tiny_context, tiny_manifest

CONFIG = DataConfig(shots=2, val_shots=1, unseen_domains=("photo",))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_manifest(str(tiny_manifest(tmp_path_factory.mktemp("split"))))


def test_a_split_comes_back_from_its_file(manifest, tmp_path):
    part = select_images(manifest, CONFIG)
    drawn = part.few_shot_split(2, 1, 0)
    write_split(part, CONFIG, str(tmp_path / "split.parquet"))
    chosen, split = read_split(part, CONFIG, str(tmp_path / "split.parquet"))
    for rows, its in ((split.train_rows, drawn.train_rows), (split.val_rows, drawn.val_rows)):
        assert chosen.columns(chosen.table.column_names, rows).equals(
            part.columns(chosen.table.column_names, its)
        )


def test_who_has_the_file_opens_no_row_of_the_manifest(tmp_path):
    before = tiny_context(tmp_path)
    file = str(tmp_path / "split.parquet")
    write_split(before.manifest, before.config.data, file)
    for rows in (tmp_path / "manifest" / "rows").iterdir():
        rows.rename(rows.with_suffix(".away"))
    config = before.config.model_copy(update={"few_shot_file": file})
    after = load_context(config, torch.device("cpu"))
    assert after.train.image_ids == before.train.image_ids
    assert torch.equal(after.val.domain_N, before.val.domain_N)
    assert torch.equal(after.val.image(2), before.val.image(2))
    with pytest.raises(UserError, match=r"rows/.*: no such file"):
        after.manifest.test_rows()


@pytest.mark.parametrize("other", [{"shots": 1}, {"split_seed": 3}, {"classes": "base"}])
def test_a_split_of_another_draw_is_refused(manifest, tmp_path, other):
    part = select_images(manifest, CONFIG)
    file = str(tmp_path / "split.parquet")
    write_split(part, CONFIG, file)
    config = CONFIG.model_copy(update=other)
    with pytest.raises(UserError, match="few-shot split .*: is not that of manifest"):
        read_split(select_images(manifest, config), config, file)
    with pytest.raises(UserError, match="is not that of manifest"):
        rows = next((tmp_path.parent / manifest.url / "rows").iterdir())
        read_split(described_manifest(manifest.url), CONFIG, str(rows))
