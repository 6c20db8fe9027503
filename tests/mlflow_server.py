"""A real MLflow server on loopback, with its runs in SQLite."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from mlflow import MlflowClient

from infra.stack.ports import free_ports

START_TIMEOUT_S = 180
PAGE_BYTES = 4096


class MlflowServer:
    """A server that can be killed and started again.

    Args:
        folder: For its runs and artifacts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Ends it and all its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait(30)
            self._process = None

    def set_disk_full(self, is_full: bool) -> None:
        """Has it write nothing more behind the first page of any file, or as it likes again."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        for process in (main, *main.children(recursive=True)):
            _, most = process.rlimit(resource.RLIMIT_FSIZE)
            process.rlimit(resource.RLIMIT_FSIZE, (PAGE_BYTES if is_full else most, most))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None and self._process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server does not answer")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Runs a server."""
    server = MlflowServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def held(client: MlflowClient, data_set: str, search_id: str) -> dict[str, object]:
    """All that MLflow has of a search, by the runs' names; without ids and times."""
    experiment = client.get_experiment_by_name(data_set)
    assert experiment is not None
    wanted = f"tags.search_id = '{search_id}'"
    runs = client.search_runs([experiment.experiment_id], wanted, max_results=5000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    found: dict[str, object] = {}
    for run in runs:
        assert run.info.run_name not in found, f"{run.info.run_name} is there twice"
        tags = dict(run.data.tags)
        parent = names.get(tags.pop("mlflow.parentRunId", ""))
        curves = {
            name: sorted(
                (p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        }
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        data = [each.tags[0].value for each in run.inputs.dataset_inputs]
        status, params = run.info.status, run.data.params
        found[run.info.run_name] = (status, parent, tags, params, curves, files, data)
    return found
