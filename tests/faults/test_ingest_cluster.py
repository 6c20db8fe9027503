"""An ingest on a cluster whose nodes die: no image is lost, none is there twice."""

import threading
import time

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from pipeline.executors.cluster import SETTINGS
from pipeline.ingest import IngestConfig, ingest

N_IMAGES = 400


@pytest.fixture
def cluster():
    """A head that reads nothing, and two nodes of one core."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_a_node_that_dies_changes_nothing(cluster, tmp_path, monkeypatch):
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        file = images / f"domain{i % 2}" / "cup" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(file)
    monkeypatch.setattr("pipeline.ingestion.pieces.FEWEST_IMAGES", 16)
    monkeypatch.setattr("pipeline.executors.cluster.connect", lambda _: None)
    nodes = [cluster.add_node(num_cpus=1) for _ in "ab"]
    out = tmp_path / "there"
    config = IngestConfig(source=str(images), out=str(out), address=cluster.address, pack=True)
    config = config.model_copy(update={"shard_mib": 1})
    found = []
    work = threading.Thread(target=lambda: found.append(ingest(config)))
    work.start()
    while not list(out.glob(".unfinished-*/*.parquet")):
        assert work.is_alive(), "ended before a node could die"
        time.sleep(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1)
    work.join(300)
    here = ingest(config.model_copy(update={"address": None, "out": str(tmp_path / "here")}))
    assert found[0].digest == here.digest
    assert found[0].table.equals(here.table)
    assert found[0].n_images == N_IMAGES
