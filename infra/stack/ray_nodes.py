"""The Ray cluster: a head node for drivers and worker nodes for executors, behind a token."""

from __future__ import annotations

import json
import os
import sysconfig
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from infra.stack.ports import free_ports
from infra.stack.secret_files import (
    Secrets,
    ray_variables,
    s3_variables,
    search_variables,
    with_values,
)
from infra.stack.server import CHECK_TIMEOUT_S, Server
from infra.stack.settings import HEAD_IP, Settings

OBJECT_STORE_BYTES = 500_000_000
MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class RayNode(Server):
    """A node of the cluster.

    Args:
        settings: The stack's.
        secrets: The stack's.
        sockets: Short path of the folder ``ray``: a socket's path has 107 characters at most.
    """

    # Ray gives a node 30 s, which it may need on a machine with much else to do.
    starts: ClassVar[int] = 3
    ip: str

    def __init__(self, settings: Settings, secrets: Secrets, sockets: Path) -> None:
        super().__init__(settings, secrets)
        self._sockets = sockets

    def prepare(self) -> None:
        """Makes the node's folder."""
        (self.settings.folder / "ray" / self.name).mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """The node, in the foreground."""
        return [
            str(Path(sysconfig.get_path("scripts")) / "ray"),
            "start",
            "--block",
            f"--node-ip-address={self.ip}",
            f"--node-name={self.name}",
            f"--temp-dir={self._sockets / self.name}",
            # Each would take the machine's whole memory for its own.
            f"--memory={MACHINE_BYTES // (1 + self.settings.workers)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            # Each node's agents on ports of their own.
            "--dashboard-agent-listen-port=0",
            "--dashboard-agent-grpc-port=0",
            "--runtime-env-agent-port=0",
            "--metrics-export-port=0",
        ]

    def environment(self) -> dict[str, str]:
        """The token's file, and a PATH on which jobs find this `python`."""
        scripts = sysconfig.get_path("scripts")
        path = f"{scripts}:{os.environ.get('PATH', os.defpath)}"
        return {**with_values(ray_variables(self.secrets), self.secrets), "PATH": path}

    def check(self) -> str:
        """Asks the head what it knows of this node."""
        nodes = [node for node in self._nodes() if node["node_name"] == self.name]
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        if not alive:
            raise RuntimeError("the head says it is dead" if nodes else "not in the cluster")
        resources = alive[0]["resources_total"]
        wanted = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
        return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)

    def _nodes(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.settings.ports.dashboard}/api/v0/nodes",
            headers={"Authorization": f"Bearer {self.secrets.read('ray-token')}"},
        )
        with urllib.request.urlopen(request, timeout=CHECK_TIMEOUT_S) as response:
            nodes: list[dict[str, Any]] = json.load(response)["data"]["result"]["result"]
        return nodes


class RayHead(RayNode):
    """Runs the drivers of jobs and no trial: it has no core to give."""

    name = "ray-head"
    # For the drivers' sake.
    needs: ClassVar[tuple[str, ...]] = ("s3", "postgres")
    ip = HEAD_IP

    @property
    def address(self) -> str:
        """Dashboard and job interface."""
        return f"http://127.0.0.1:{self.settings.ports.dashboard}"

    @property
    def ports(self) -> dict[str, int]:
        """For clients and for the other nodes."""
        ports = self.settings.ports
        return {"--dashboard-port": ports.dashboard, "--gcs-port": ports.gcs}

    def command(self) -> list[str]:
        """The head node."""
        (client_port,) = free_ports(1)
        return [
            *super().command(),
            "--head",
            f"--port={self.settings.ports.gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.settings.ports.dashboard}",
            f"--ray-client-server-port={client_port}",
            "--num-cpus=0",
            "--num-gpus=0",
        ]

    def environment(self) -> dict[str, str]:
        """Drivers need all that a search does: as on Kubernetes, the head node's pod has it."""
        search = with_values(search_variables(self.settings), self.secrets)
        return {**super().environment(), **search}


class RayWorker(RayNode):
    """Runs trials.

    Args:
        number: Which, from 1.
        settings: The stack's.
        secrets: The stack's.
        sockets: As for `RayNode`.
    """

    needs: ClassVar[tuple[str, ...]] = ("ray-head",)

    def __init__(self, number: int, settings: Settings, secrets: Secrets, sockets: Path) -> None:
        super().__init__(settings, secrets, sockets)
        self.name = f"ray-worker-{number}"
        self.ip = f"{HEAD_IP.rpartition('.')[0]}.{int(HEAD_IP.rpartition('.')[2]) + number}"

    @property
    def address(self) -> str:
        """The node's own address: nobody else connects to it."""
        return self.ip

    def command(self) -> list[str]:
        """A node that joins the head."""
        return [
            *super().command(),
            f"--address={HEAD_IP}:{self.settings.ports.gcs}",
            f"--num-cpus={self.settings.cpus}",
            f"--num-gpus={self.settings.gpus}",
            f"--resources={json.dumps({self.name: 1})}",
        ]

    def environment(self) -> dict[str, str]:
        """Executors read images and models; the rest is the driver's."""
        s3 = with_values(s3_variables(self.settings, "search"), self.secrets)
        return {**super().environment(), **s3}
