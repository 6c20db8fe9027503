"""Shards: the same bytes from the same images, and no more fetched than what is asked for."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from adu import storage
from adu.data import shards
from adu.data.shards import read_shard_images, write_shard
from adu.errors import UserError

MIB = 2**20


def images(n, size):
    rng = np.random.default_rng(0)
    return [(f"id{i}", rng.bytes(size + i)) for i in range(n)]


@pytest.mark.parametrize("url", ["{}/m", "memory://shards-{}"])
def test_images_come_back_in_the_order_asked(tmp_path, url):
    url = url.format(tmp_path)
    wanted = images(40, 300_000)
    shard = write_shard(url, 3, wanted)
    assert shard.startswith("images/00003-")
    rows = [39, 0, 17, 17, 2]
    assert read_shard_images(url, shard, rows) == [wanted[row][1] for row in rows]
    assert read_shard_images(url, shard, []) == []


def test_the_same_images_give_the_same_bytes_and_name(tmp_path):
    first, second = (write_shard(str(tmp_path / n), 0, images(9, 1000)) for n in "ab")
    assert first == second
    assert (tmp_path / "a" / first).read_bytes() == (tmp_path / "b" / second).read_bytes()
    assert write_shard(str(tmp_path / "c"), 0, images(9, 1001)) != first


def test_a_few_images_do_not_fetch_the_whole_shard(tmp_path, monkeypatch):
    shard = write_shard(str(tmp_path), 0, images(64, MIB))
    fetched = []
    read_range = storage.read_range

    def counted(url, start, end):
        fetched.append(end - start)
        return read_range(url, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    read_shard_images(str(tmp_path), shard, [1, 40])
    assert sum(fetched) < 2 * (shards.ROW_GROUP_BYTES + 2 * MIB)
    assert len(fetched) <= 4


def test_images_larger_than_a_row_group_stand_alone(tmp_path):
    shard = write_shard(str(tmp_path), 0, images(3, shards.ROW_GROUP_BYTES + 1))
    assert pq.read_metadata(tmp_path / shard).num_row_groups == 3


def test_a_row_that_is_not_there_and_a_broken_shard_are_told(tmp_path):
    shard = write_shard(str(tmp_path), 0, images(3, 10))
    with pytest.raises(UserError, match="rows 3 to 3 of 3"):
        read_shard_images(str(tmp_path), shard, [3])
    (tmp_path / shard).write_bytes(b"broken")
    with pytest.raises(UserError, match="is broken or not the manifest's"):
        read_shard_images(str(tmp_path), shard, [0])
    with pytest.raises(UserError, match="no such file"):
        read_shard_images(str(tmp_path), "images/none.parquet", [0])
