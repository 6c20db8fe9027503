"""The main job on a running cluster with token authentication, as `ray job submit` runs it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipeline.commands import ROOT
from tests.tiny import tiny_backbone, tiny_manifest

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 90
PORTS = (
    "--port",
    "--dashboard-port",
    "--ray-client-server-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def cluster(tmp_path_factory):
    """Dashboard address and environment of a head node that was started by hand."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {
        **os.environ,
        # A job runs `python`: this one.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    log = tmp_path_factory.mktemp("ray") / "head.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(
            [str(RAY), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
            + [f"{name}={port}" for name, port in ports.items()],
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['--dashboard-port']}"
    try:
        wait_for_dashboard(address, head, log)
        yield address, environment
    finally:
        end_with_children(head)


def end_with_children(head):
    """Ends a head node. `ray stop` would end every Ray of the machine."""
    processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(30)
    psutil.wait_procs(processes, timeout=30)


def wait_for_dashboard(address, head, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # It asks for the token.
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def submit(cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    return subprocess.run(
        [str(RAY), "job", "submit", "--address", address, "--working-dir", "."]
        + ["--", "python", "pipeline/search.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_search_as_a_job(cluster, tmp_path):
    values = {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(tiny_backbone(tmp_path / "model"))},
            "data": {"manifest": str(tiny_manifest(tmp_path)), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 1, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 1},
        "resources": {"executors": 1},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(values))

    output = tmp_path / "results" / "job"
    done = submit(cluster, "--config", str(file), "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    (study,) = json.loads((output / "summary.json").read_text())["studies"]
    assert (study["complete"], study["n_trials"]) == (True, 1)
    # The job's log is the search's own: its lines and its table.
    assert "forget sketch: trial 0 complete" in done.stdout
    assert "ADU, searched" in done.stdout
