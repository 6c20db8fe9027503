"""A store that stumbles gives the same bytes in the end; one that refuses is asked once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adu import storage
from adu.data import reading
from adu.data.manifest import load_manifest
from adu.data.reading import read_images, stored
from adu.errors import UserError
from adu.storage import persistence
from pipeline.ingest import IngestConfig, ingest
from tests.fault_proxy import KINDS, SHORTEN
from tests.tiny import tiny_images


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(persistence, "FIRST_PAUSE_S", 0.01)


def write_files(s3, n):
    files = {storage.join(s3, "folder", str(i)): bytes([i]) * (1000 + i) for i in range(n)}
    for url, data in files.items():
        storage.write_bytes(url, data)
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_survived(s3, s3_proxy, kind):
    files = write_files(s3, 4)
    s3_proxy.rate, s3_proxy.kinds = 0.4, (kind,)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(storage.read_bytes, files))
    for url, data in files.items():
        storage.write_bytes(f"{url}.copy", data)
    s3_proxy.rate = 0
    assert found == list(files.values())
    assert [storage.read_bytes(f"{url}.copy") for url in files] == found
    assert s3_proxy.broken[kind] > 0


def test_a_fault_that_stays_is_told_after_some_attempts(s3, s3_proxy, monkeypatch):
    monkeypatch.setattr(persistence, "MAX_TRANSFERS", 2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    (url,) = write_files(s3, 1)
    s3_proxy.rate, s3_proxy.kinds = 1, ("reset",)
    with pytest.raises(UserError, match=f"{url}: cannot connect to {s3_proxy.url}"):
        storage.read_bytes(url)
    # aiohttp sends a request once more where a connection was open before.
    assert 4 <= s3_proxy.broken["reset"] <= 8


def test_what_is_not_there_or_not_allowed_is_asked_for_once(s3, s3_proxy, monkeypatch):
    write_files(s3, 1)
    with pytest.raises(UserError, match="no such file"):
        storage.read_bytes(f"{s3}/folder/none")
    with pytest.raises(UserError, match="no such bucket"):
        storage.read_bytes("s3://no-such-bucket-at-all/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="access key or its secret is wrong"):
        storage.read_bytes(f"{s3}/folder/0")
    assert set(s3_proxy.gets("").values()) == {1}


def test_a_body_that_only_the_hash_tells_from_a_whole_one_is_fetched_again(s3, s3_proxy, tmp_path):
    fs, path = storage.filesystem_for(s3)
    fs.put(str(tiny_images(tmp_path, per_cell=2)), f"{path}/images", recursive=True)
    ingest(IngestConfig(source=f"{s3}/images", out=f"{s3}/manifest"))
    manifest = load_manifest(f"{s3}/manifest")
    rows = range(manifest.n_images)
    whole = read_images(manifest, rows, stored(64), 4)
    s3_proxy.rate, s3_proxy.kinds = 0.2, (SHORTEN,)
    mended = read_images(manifest, rows, stored(64), 4)
    assert s3_proxy.broken[SHORTEN] > 0
    assert all(torch.equal(whole.image(i), mended.image(i)) for i in rows)


def test_an_image_that_stays_wrong_is_named(s3, s3_proxy, tmp_path, monkeypatch):
    fs, path = storage.filesystem_for(s3)
    fs.put(str(tiny_images(tmp_path, per_cell=2)), f"{path}/images", recursive=True)
    ingest(IngestConfig(source=f"{s3}/images", out=f"{s3}/manifest"))
    manifest = load_manifest(f"{s3}/manifest")
    uri = manifest.columns(["uri"], [3])["uri"][0].as_py()
    storage.write_bytes(uri, b"something else")
    before = s3_proxy.gets(uri.removeprefix("s3://"))
    with pytest.raises(UserError, match=f"image {uri}: has changed since"):
        read_images(manifest, [3], stored(64), 1)
    after = s3_proxy.gets(uri.removeprefix("s3://"))
    assert Counter(after - before).total() == reading.MAX_FETCHES


def test_ingest_through_faults_gives_the_same_digest(s3, s3_proxy, tmp_path):
    images = tiny_images(tmp_path / "images", per_cell=4)
    local = ingest(IngestConfig(source=str(images), out=str(tmp_path / "manifest")))
    fs, path = storage.filesystem_for(s3)
    fs.put(str(images), f"{path}/images", recursive=True)
    s3_proxy.rate = 0.05
    ingest(IngestConfig(source=f"{s3}/images", out=f"{s3}/manifest"))
    assert sum(s3_proxy.broken.values()) > 0
    s3_proxy.rate = 0
    assert load_manifest(f"{s3}/manifest").digest == local.digest
