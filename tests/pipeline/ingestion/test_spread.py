"""Pieces are read here or on a cluster, with the same outcome; what is there is not read again."""

import multiprocessing
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import ray

from adu.errors import UserError
from pipeline.executors.cluster import SETTINGS
from pipeline.ingest import IngestConfig, ingest
from pipeline.ingestion.image_reader import ReadSettings
from pipeline.ingestion.listing import Found
from pipeline.ingestion.pieces import Journal, Piece, loose_pieces, packed_pieces
from pipeline.ingestion.spread import read_in_processes, read_on_cluster
from tests.pipeline.ingestion.listed import rows_of
from tests.tiny import tiny_backbone, tiny_images


@pytest.fixture(scope="module")
def cluster():
    """The address of a small cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pack": True, "shard_mib": 1},
        pytest.param({"domains": "pseudo:3"}, marks=pytest.mark.faults),
    ],
    ids=["loose", "packed", "pseudo"],
)
def test_a_cluster_writes_what_one_process_writes(cluster, tmp_path, monkeypatch, options):
    images = tiny_images(tmp_path / "images", per_cell=30)
    if "domains" in options:
        options = options | {"backbone": str(tiny_backbone(tmp_path / "model"))}
    (images / "photo" / "cup" / "bad.png").write_bytes(b"bad")
    shutil.copy(images / "photo" / "cup" / "0.png", images / "sketch" / "cup" / "again.png")
    monkeypatch.setattr("pipeline.ingestion.pieces.FEWEST_IMAGES", 16)
    # The connection is there already.
    monkeypatch.setattr("pipeline.executors.cluster.connect", lambda _: None)
    there, here = (
        ingest(IngestConfig(source=str(images), out=str(tmp_path / name), address=its, **options))
        for name, its in (("there", cluster), ("here", None))
    )
    assert there.digest == here.digest
    assert there.table.equals(here.table)


@pytest.mark.parametrize("options", [{}, {"pack": True, "shard_mib": 1}], ids=["loose", "packed"])
def test_processes_write_what_one_writes(tmp_path, monkeypatch, options):
    images = tiny_images(tmp_path / "images", per_cell=30)
    (images / "photo" / "cup" / "bad.png").write_bytes(b"bad")
    monkeypatch.setattr("pipeline.ingestion.pieces.FEWEST_IMAGES", 16)
    here = ingest(IngestConfig(source=str(images), out=str(tmp_path / "here"), **options))
    monkeypatch.setattr("pipeline.ingest._enough_for", lambda *_: 2)
    apart = ingest(IngestConfig(source=str(images), out=str(tmp_path / "apart"), **options))
    assert apart.digest == here.digest
    assert apart.table.equals(here.table)
    assert not multiprocessing.active_children()


def test_a_reading_process_that_is_killed_is_one_line_and_no_other_is_left(tmp_path):
    images = tiny_images(tmp_path / "images")
    names = [f"photo/cup/{i}.png" for i in range(4)]
    pieces = [replace(piece(images, [name]), number=i) for i, name in enumerate(names)]
    journal = Journal(str(tmp_path), {})
    reading = read_in_processes(ReadSettings(str(tmp_path), 1, 1), journal, 2)(pieces)
    _, first = next(reading)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    with pytest.raises(UserError, match="a process that reads images was killed .*; what is read"):
        list(reading)
    assert not multiprocessing.active_children()
    assert journal.read(first).num_rows == 1


def piece(folder, names=("0.png",)):
    return Piece(0, rows_of([Found(name, f"{folder}/{name}", "a", "x", "test") for name in names]))


def test_a_folder_that_a_node_does_not_see_is_one_line(cluster, tmp_path):
    settings = ReadSettings(str(tmp_path), 1, 1)
    read = read_on_cluster(settings, Journal(str(tmp_path), {}), [str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="/nowhere: is not seen on node .* .give a URL, or a sha"):
        list(read([piece(tmp_path)]))


READING = """
import multiprocessing
from pipeline.ingestion.image_reader import ReadSettings
from pipeline.ingestion.pieces import Journal
from pipeline.ingestion.spread import read_in_processes
from tests.pipeline.ingestion.test_spread import piece

def pieces():
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    yield piece("s3://nowhere")

list(read_in_processes(ReadSettings("/nowhere", 1, 1), Journal("/nowhere", {}), 1)(pieces()))
"""


@pytest.mark.faults
def test_reading_processes_end_with_one_that_is_killed(monkeypatch):
    # Nobody listens there: an image is asked for again and again.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    reading = subprocess.Popen([sys.executable, "-c", READING], stdout=subprocess.PIPE, text=True)
    (pid,) = map(int, reading.stdout.readline().split())
    time.sleep(3)  # its process has begun
    reading.kill()
    reading.wait()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
    assert not psutil.pid_exists(pid)


def listed(n, n_bytes=None):
    images = [Found(f"{i:04}", f"/{i}", "a", "x", "train", n_bytes) for i in range(n)]
    table = rows_of(images)
    return [table.slice(start, 37) for start in range(0, n, 37)]


def test_pieces_hold_every_image_once_and_in_order():
    for pieces in (
        list(loose_pieces(listed(500), 10)),
        list(packed_pieces(listed(500, 100), 1000)),
        list(packed_pieces(listed(500), 2**20)),
    ):
        assert len(pieces) > 20
        names = [name for p in pieces for name in p.rows["image_id"].to_pylist()]
        assert names == [f"{i:04}" for i in range(500)]
        assert [p.number for p in pieces] == list(range(len(pieces)))
        assert max(p.rows.num_rows for p in pieces) <= 40


def test_an_image_more_changes_one_piece_alone():
    before = listed(500)
    more = rows_of([Found("0100a", "/x", "a", "x", "train")])
    after = [*before[:2], before[2].slice(0, 27), more, before[2].slice(27), *before[3:]]
    keys = [{p.key for p in loose_pieces(blocks, 10)} for blocks in (before, after)]
    assert len(keys[0] - keys[1]) == 1
