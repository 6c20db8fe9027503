"""A Ray cluster on loopback that was started by hand, with token authentication."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from infra.stack.ports import free_ports
from tests.pipeline.commands import ROOT

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 90
# A node ends if it is not on its feet within 30 s, for which Ray has no setting.
STARTS = 3
AGENT_PORTS = (
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
HEAD_PORTS = ("--port", "--dashboard-port", "--ray-client-server-port", *AGENT_PORTS)


class NodeEndedError(Exception):
    """A node that ended before it was healthy; the message is its log."""


class RayCluster(NamedTuple):
    """A cluster as clients see it.

    Attributes:
        address: Its dashboard.
        environment: Of a client, with the token.
        agents: Address of each node's agent, the head's first.
    """

    address: str
    environment: dict[str, str]
    agents: tuple[str, ...]


@contextmanager
def ray_cluster(
    folder: Path, variables: Mapping[str, str], workers: Sequence[Sequence[str]]
) -> Iterator[RayCluster]:
    """Runs a head that trains nothing and workers, as on Kubernetes.

    Args:
        folder: For logs.
        variables: Environment variables of all nodes.
        workers: Options of `ray start` of each worker.
    """
    environment = {
        **os.environ,
        # A job runs `python`: this one.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }
    environment.pop("RAY_ADDRESS", None)
    nodes: list[subprocess.Popen[bytes]] = []
    # Short: the path of a socket may have 107 characters.
    sockets = tempfile.mkdtemp(prefix="ray-")

    def start(name: str, health: str, ports: Mapping[str, int], options: Sequence[str]) -> None:
        log = folder / f"{name}.log"
        for _ in range(STARTS):
            with log.open("ab") as sink:
                node = subprocess.Popen(
                    [str(RAY), "start", "--block", "--node-ip-address", "127.0.0.1", *options]
                    # Nodes of one machine would delete each other's copies of a job's files.
                    + [f"--temp-dir={sockets}/{name}"]
                    + [f"{option}={port}" for option, port in ports.items()],
                    # A job without a working directory of its own stands where its head was
                    # started.
                    cwd=ROOT,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            nodes.append(node)
            with suppress(NodeEndedError):
                wait_until_healthy(health, node, log)
                return
            end_with_children(node)
        raise NodeEndedError(log.read_text())

    free = iter(free_ports(len(HEAD_PORTS) + len(workers) * len(AGENT_PORTS)))
    head_ports = {option: next(free) for option in HEAD_PORTS}
    agents = [f"http://127.0.0.1:{head_ports['--dashboard-agent-listen-port']}"]
    address = f"http://127.0.0.1:{head_ports['--dashboard-port']}"
    try:
        start("head", f"{address}/api/gcs_healthz", head_ports, ["--head", "--num-cpus", "0"])
        for number, options in enumerate(workers):
            ports = {option: next(free) for option in AGENT_PORTS}
            agents.append(f"http://127.0.0.1:{ports['--dashboard-agent-listen-port']}")
            health = f"{agents[-1]}/api/local_raylet_healthz"
            gcs = f"--address=127.0.0.1:{head_ports['--port']}"
            start(f"worker-{number}", health, ports, [gcs, *options])
        yield RayCluster(address, environment, tuple(agents))
    finally:
        for node in reversed(nodes):
            end_with_children(node)
        shutil.rmtree(sockets, ignore_errors=True)


def end_with_children(node: subprocess.Popen[bytes]) -> None:
    """Ends a node. `ray stop` would end every Ray of the machine."""
    with suppress(psutil.NoSuchProcess):
        processes = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(30)
        psutil.wait_procs(processes, timeout=30)


def wait_until_healthy(url: str, node: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Waits for a node, unless it has ended; None for one that is nobody's child."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if node is not None and node.poll() is not None:
            raise NodeEndedError(log.read_text())
        with suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.3)
    raise AssertionError(f"{url}: not healthy after {START_TIMEOUT_S} s: {log.read_text()}")
