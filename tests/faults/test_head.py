"""The head of a cluster dies, with its state in Redis: what the search has is not lost.

The head's process group stands for its pod; the worker node, with processes of its own, stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from infra.stack.ports import free_ports
from pipeline.executors.cluster import SETTINGS
from tests.pipeline import commands
from tests.ray_cluster import HEAD_PORTS, RAY, wait_until_healthy
from tests.tiny import tiny_backbone, tiny_manifest

REDIS = shutil.which("redis-server")
MARK = "ADU_TEST_CLUSTER"
N_TRIALS = 3
EPOCHS = 60
PATIENCE_S = 240.0

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(REDIS is None, reason="redis-server (Debian: redis-server) is missing"),
]


class RedisCluster:
    """A head with its state in Redis and a worker node; all that they start bears a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
        (self.redis_port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.ports['--port']}"
        self.dashboard = f"http://127.0.0.1:{self.ports['--dashboard-port']}"
        self.environment = {
            **os.environ,
            **SETTINGS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{self.redis_port}",
            "RAY_external_storage_namespace": uuid.uuid4().hex,
            # How long nodes wait for a head that is gone.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._marks = {name: uuid.uuid4().hex for name in ("redis", "head", "worker")}
        # Short: the path of a socket may have 107 characters.
        self._sockets = tempfile.mkdtemp(prefix="ray-")
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        assert REDIS is not None
        self._popen("redis", [REDIS, "--port", str(self.redis_port), "--bind", "127.0.0.1"])
        self.start_head()
        worker = ["start", "--address", self.address, "--num-cpus", "2", "--block"]
        self._popen("worker", [str(RAY), *worker, *self._place("worker")])

    def start_head(self) -> None:
        # A new pod has an empty disk.
        shutil.rmtree(f"{self._sockets}/head", ignore_errors=True)
        # Without --block, which would take the end of the GCS for that of the node.
        ports = [f"{name}={port}" for name, port in self.ports.items()]
        head = ["start", "--head", "--num-cpus", "0", *ports, *self._place("head")]
        process = self._popen("head", [str(RAY), *head])
        assert process.wait(120) == 0, (self.folder / "head.log").read_text()
        wait_until_healthy(f"{self.dashboard}/api/gcs_healthz", None, self.folder / "head.log")

    def restart_gcs(self) -> None:
        (gcs,) = [p for p in self.processes("head") if p.name().startswith("gcs_server")]
        command, environment, cwd = gcs.cmdline(), gcs.environ(), gcs.cwd()
        gcs.kill()
        gcs.wait(20)
        time.sleep(3)
        with (self.folder / "gcs.log").open("wb") as sink:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self._started.append(("head", process))

    def processes(self, part: str) -> list[psutil.Process]:
        """What bears a part's mark, and what was started as it: Redis writes over its mark."""
        found = []
        pids = {process.pid for name, process in self._started if name == part}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid in pids or process.environ().get(MARK) == self._marks[part]:
                    found.append(process)
        return found

    def kill(self, *parts: str) -> None:
        """All processes of some parts, as the end of their machine would."""
        doomed = [process for part in parts for process in self.processes(part)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for _, process in self._started:
            if process.pid in {each.pid for each in doomed}:
                process.wait(20)
        psutil.wait_procs(doomed, timeout=20)

    def remove(self) -> None:
        """Ends all and leaves nothing."""
        self.kill("worker", "head", "redis")
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _place(self, part: str) -> list[str]:
        # Nodes that share a folder delete each other's copies of a job's files.
        return ["--node-ip-address", "127.0.0.1", f"--temp-dir={self._sockets}/{part}"]

    def _popen(self, part: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{part}.log").open("ab") as sink:
            process = subprocess.Popen(
                command,
                env={**self.environment, MARK: self._marks[part]},
                cwd=self.folder,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append((part, process))
        return process


@pytest.fixture
def cluster(tmp_path):
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


def search_file(folder: Path) -> str:
    file = folder / "search.yaml"
    values = {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(tiny_backbone(folder / "model"))},
            "data": {
                "manifest": str(tiny_manifest(folder, per_cell=12)),
                "shots": 4,
                "val_shots": 1,
            },
        },
        "forget": [["sketch"]],
        "train": {"epochs": EPOCHS, "batch_size": 2},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": N_TRIALS, "scheduler": "none", "tries": 0},
        "final": {"seeds": [0]},
        # The worker node may come back a little after the head.
        "resources": {"executors": 1, "autoscale": True, "start_timeout_s": PATIENCE_S},
        "output": str(folder / "results" / "out"),
    }
    file.write_text(yaml.safe_dump(values))
    return str(file)


def submit(cluster: RedisCluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(RAY), "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
        + ["--", "python", "pipeline/search.py", *arguments],
        cwd=commands.ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def check(output: Path) -> None:
    (study,) = json.loads((output / "summary.json").read_text())["studies"]
    assert (study["complete"], study["n_trials"]) == (True, N_TRIALS)
    client = MlflowClient(f"sqlite:///{output.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs(
        [experiment.experiment_id], "tags.stage = 'trial' AND tags.level = 'configuration'"
    )
    assert len(runs) == N_TRIALS
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "val/h")
        assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))


def test_a_job_is_resumed_on_a_head_that_was_started_again(cluster, tmp_path):
    file, output = search_file(tmp_path), tmp_path / "results" / "out"
    job = submit(cluster, "--config", file)
    wait_for(output, "unfinished/*/*.state", job)
    raylets = {p.pid for p in cluster.processes("worker") if p.name().startswith("raylet")}
    cluster.kill("head")
    job.communicate(timeout=120)
    assert not (output / "summary.json").exists()

    cluster.start_head()
    job = submit(cluster, "--config", file, "--resume")
    out, _ = job.communicate(timeout=500)
    assert job.returncode == 0, out
    assert raylets == {
        p.pid for p in cluster.processes("worker") if p.name().startswith("raylet")
    }, "the worker node did not find back"
    check(output)


def test_a_search_outlives_its_clusters_state_server(cluster, tmp_path):
    file, output = search_file(tmp_path), tmp_path / "results" / "out"
    environment = {**cluster.environment, MARK: ""}
    search = commands.start(
        "search.py", ["--config", file, "--address", cluster.address], **environment
    )
    wait_for(output, "unfinished/*/*.state", search)
    cluster.restart_gcs()
    out, err = search.communicate(timeout=500)
    assert search.returncode == 0, out + err
    check(output)
