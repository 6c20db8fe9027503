"""Decoded images of a job: written once whoever asks, shared, and gone when the job is."""

import errno
import multiprocessing
import os
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import torch

from adu.context import load_context
from adu.data import cache as image_cache
from adu.data.cache import ImageCache
from adu.data.pixels import map_pixels, write_pixels
from adu.data.reading import READ_LOG_VARIABLE
from tests.tiny import tiny_context

IMAGES = [(1, np.full((2, 3, 3), 7, np.uint8)), (0, np.full((4, 1, 3), 9, np.uint8))]


def fill(file):
    write_pixels(file, iter(IMAGES), 2)


def never(file):
    raise AssertionError("written again")


def test_images_come_back_in_their_places(tmp_path):
    fill(tmp_path / "x")
    pixels = map_pixels(tmp_path / "x")
    assert all((pixels.image(place) == image).all() for place, image in IMAGES)


def test_half_a_file_is_none(tmp_path):
    def broken():
        yield IMAGES[0]
        raise ValueError

    with pytest.raises(ValueError):
        write_pixels(tmp_path / "x", broken(), 2)
    assert map_pixels(tmp_path / "x") is None


def test_the_second_to_ask_maps_what_the_first_wrote(tmp_path):
    first, second = ImageCache("job", [tmp_path]), ImageCache("job", [tmp_path])
    written = first.get("key", 100, fill)
    mapped = second.get("key", 100, never)
    assert (written.flat == mapped.flat).all()


def test_the_last_to_leave_removes_the_folder_and_mapped_images_stay(tmp_path):
    first, second = ImageCache("job", [tmp_path]), ImageCache("job", [tmp_path])
    pixels = first.get("key", 100, fill)
    first.close()
    assert second.get("key", 100, never) is not None
    second.close()
    second.close()
    (root,) = tmp_path.iterdir()
    assert list(root.iterdir()) == []
    assert (pixels.image(0) == 9).all()


def test_other_jobs_have_their_own(tmp_path):
    first, second = ImageCache("a", [tmp_path]), ImageCache("b", [tmp_path])
    assert first.get("key", 100, fill) is not None
    with pytest.raises(AssertionError):
        second.get("key", 100, never)


def test_a_disk_that_fills_up_is_no_room(tmp_path):
    """A container's limit is below what its disk says is free; the next place may have room."""
    places = [tmp_path / "small", tmp_path / "large"]
    for place in places:
        place.mkdir()

    def fill_the_large_one(file):
        if places[0] in file.parents:
            file.with_name(f"{file.name}.part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(file)

    cache = ImageCache("job", places)
    assert cache.get("key", 100, fill_the_large_one) is not None
    assert not list(places[0].glob("**/*.part"))
    assert ImageCache("other", places[:1]).get("key", 100, fill_the_large_one) is None


def test_without_room_there_are_none(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    cache = ImageCache("job", [tmp_path])
    assert cache.get("key", 501, fill) is None
    assert cache.get("key", 499, fill) is not None


def slow_fill(file):
    (file.parent.parent.parent / f"written-{os.getpid()}").touch()
    time.sleep(0.5)
    fill(file)


def use(root, until_killed=False):
    cache = ImageCache("job", [root])
    pixels = cache.get("key", 100, slow_fill)
    (root / f"used-{os.getpid()}").touch()
    while until_killed:
        time.sleep(0.1)
    return pixels


def start(count, *arguments):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=use, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def test_processes_that_ask_at_the_same_time_wait_for_one(tmp_path):
    mine = ImageCache("job", [tmp_path])
    for process in start(4, tmp_path):
        process.join(30)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("written-*"))) == 1
    assert len(list(tmp_path.glob("used-*"))) == 4
    mine.close()


def test_what_a_killed_job_left_is_removed_by_the_next(tmp_path):
    (process,) = start(1, tmp_path, True)
    while not list(tmp_path.glob("used-*")):
        time.sleep(0.02)
    (root,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (left,) = [path for path in root.iterdir() if path.is_dir()]
    other = ImageCache("other", [tmp_path])
    assert left.exists(), "removed while in use"
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    other.close()
    ImageCache("next", [tmp_path]).close()
    assert list(root.iterdir()) == []


@pytest.fixture
def contexts(tmp_path, monkeypatch):
    """Two contexts as two executors of a node have them, and the log of what they read."""
    monkeypatch.setenv(READ_LOG_VARIABLE, str(tmp_path / "reads"))
    config = tiny_context(tmp_path).config
    caches = [ImageCache("job", [tmp_path]) for _ in "ab"]
    return [load_context(config, torch.device("cpu"), cache) for cache in caches]


def test_executors_of_a_node_read_each_image_once(contexts, tmp_path):
    first, second = contexts
    assert torch.equal(first.train.image(3), second.train.image(3))
    assert torch.equal(first.val.image(0), second.val.image(0))
    manifest = first.manifest
    of_test = set(manifest.columns(["uri"], manifest.test_rows())["uri"].to_pylist())
    reads = [line.split(" ")[1] for line in (tmp_path / "reads").read_text().splitlines()]
    assert len(reads) == len(set(reads)) and not of_test & set(reads)
    whole = [context.test_images(slice(None)) for context in contexts for _ in range(5)]
    assert {len(images) for blocks in whole for images in blocks} == {len(of_test)}
    reads = [line.split(" ")[1] for line in (tmp_path / "reads").read_text().splitlines()]
    assert len(reads) == len(set(reads)) and of_test < set(reads)


@pytest.mark.parametrize("disk_gib", [0, 1])
def test_a_test_split_too_large_for_memory_is_on_the_disk_or_streamed(contexts, disk_gib):
    first, _ = contexts
    whole = list(first.test_images(slice(4, 30)))
    limits = {"cache_gib": 0, "disk_gib": disk_gib}
    config = first.config.model_copy(update={"data": first.config.data.model_copy(update=limits)})
    limited = load_context(config, torch.device("cpu"), first.cache)
    blocks = list(limited.test_images(slice(4, 30)))
    assert (limited.test is None) == (disk_gib == 0)
    assert [i for b in blocks for i in b.image_ids] == [i for b in whole for i in b.image_ids]
    assert torch.equal(blocks[0].image(0), whole[0].image(0))


def test_what_is_for_the_disk_takes_no_shared_memory(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir(), disk.mkdir()
    cache = ImageCache("job", [memory, disk])
    assert cache.get("small", 100, fill) is not None
    assert cache.get("large", 100, fill, on_disk=True) is not None
    assert [len(list(root.glob("*/*/*.json"))) for root in (memory, disk)] == [1, 1]
    cache.close()
