"""A study on a cluster that scales itself: from no worker node to what is asked for, and back.

Ray's fake multi-node provider starts a raylet of this machine where a cloud would start a node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from adu.errors import UserError
from infra.stack.ports import free_ports
from pipeline.executors.cluster import SETTINGS
from pipeline.executors.resources import ResourcesConfig, count_executors
from tests.faults.stub_job import PATIENCE_S, StubJob, nodes
from tests.ray_cluster import HEAD_PORTS, RAY, end_with_children, wait_until_healthy

N_TRIALS = 6


@pytest.fixture
def autoscaling(tmp_path):
    """This process, connected to a head with no core that may start two nodes of one core."""
    # This process, which has imported Ray long ago, cannot begin to show a token.
    open_to_all = {"RAY_AUTH_MODE": "disabled"}
    ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
    address = f"127.0.0.1:{ports['--port']}"
    node_type = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    head_type = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = tmp_path / "autoscaler.json"
    config.write_text(
        json.dumps(
            {
                "cluster_name": "fake",
                "max_workers": 2,
                "provider": {
                    # Ray's wheel lacks a file that the type "fake_multinode" needs.
                    "type": "external",
                    "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
                    "use_node_id_as_ip": True,
                    "disable_node_updaters": True,
                    "disable_launch_config_check": True,
                    "gcs_address": address,
                    "launch_multiple": True,
                    "head_node_id": FAKE_HEAD_NODE_ID,
                },
                "available_node_types": {"ray.head.default": head_type, "worker": node_type},
                "head_node_type": "ray.head.default",
                "upscaling_speed": 10.0,
                "idle_timeout_minutes": 0.05,
                "auth": {},
                "file_mounts": {},
                "cluster_synced_files": [],
                "initialization_commands": [],
                "setup_commands": [],
                "head_setup_commands": [],
                "worker_setup_commands": [],
                "head_start_ray_commands": [],
                "worker_start_ray_commands": [],
            }
        )
    )
    environment = {
        **os.environ,
        **open_to_all,
        **SETTINGS,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    environment.pop("RAY_ADDRESS", None)
    log = tmp_path / "head.log"
    # Short: the path of a socket may have 107 characters.
    sockets = tempfile.mkdtemp(prefix="ray-")
    with log.open("wb") as sink:
        head = subprocess.Popen(
            [str(RAY), "start", "--head", "--block", "--num-cpus", "0"]
            + ["--node-ip-address", "127.0.0.1", f"--autoscaling-config={config}"]
            + [f"--temp-dir={sockets}"]
            + [f"{name}={port}" for name, port in ports.items()],
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_healthy(
            f"http://127.0.0.1:{ports['--dashboard-port']}/api/gcs_healthz", head, log
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**SETTINGS, **open_to_all}.items():
                patch.setenv(name, value)
            ray.init(address, log_to_driver=False)
            yield
            ray.shutdown()
    finally:
        end_with_children(head)
        shutil.rmtree(sockets, ignore_errors=True)


def n_workers():
    return sum(node.get("CPU", 0) > 0 for node in nodes())


def test_from_zero_workers_to_what_the_search_asks_for_and_back(autoscaling, tmp_path):
    assert n_workers() == 0
    with pytest.raises(UserError, match="the cluster has 0 CPU on 1 node, enough for 0"):
        count_executors(ResourcesConfig(executors=2), nodes())

    trials = {"scales": N_TRIALS}
    job = StubJob(tmp_path, trials, executors=2, autoscale=True, start_timeout_s=PATIENCE_S)
    job.watcher.wait_for(lambda: len(job.watcher.running) == 2)
    job.wait()
    job.check_complete(trials)
    assert job.watcher.most_at_once == 2

    deadline = time.monotonic() + PATIENCE_S
    while n_workers():
        assert time.monotonic() < deadline, "the cluster did not shrink"
        time.sleep(0.5)
