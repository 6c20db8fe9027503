"""SeaweedFS: the object store, with the S3 interface and a key for each user."""

from __future__ import annotations

import json
import signal
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

from adu.errors import UserError
from infra.stack.ports import free_ports
from infra.stack.server import CHECK_TIMEOUT_S, Server
from infra.stack.settings import MLFLOW_BUCKET, REGION, SEARCH_BUCKET

# What each user may do; "*" stands for every bucket.
RIGHTS = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "search": [f"{right}:{SEARCH_BUCKET}" for right in ("Read", "Write", "List", "Tagging")],
    "mlflow": [f"{right}:{MLFLOW_BUCKET}" for right in ("Read", "Write", "List", "Tagging")],
}


class SeaweedFS(Server):
    """Keeps manifests, models, results and MLflow's artifacts."""

    name = "s3"
    # On SIGTERM its filer waits 15 s for its own gateway to leave. What was written is the
    # kernel's by then, and its clients are stopped first.
    stop_signal: ClassVar[int] = signal.SIGKILL

    @property
    def address(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.settings.ports.s3}"

    @property
    def ports(self) -> dict[str, int]:
        """One for clients."""
        return {"--s3-port": self.settings.ports.s3}

    def prepare(self) -> None:
        """Writes who may do what."""
        if not _weed().exists():
            raise UserError("s3: SeaweedFS is not installed (make setup brings it)")
        self._data.mkdir(parents=True, exist_ok=True)
        identities = [
            {
                "name": user,
                "credentials": [{"accessKey": user, "secretKey": self.secrets.read(f"s3-{user}")}],
                "actions": rights,
            }
            for user, rights in RIGHTS.items()
        ]
        self.secrets.write("s3-identities.json", json.dumps({"identities": identities}))

    def command(self) -> list[str]:
        """Master, volume server, filer and S3 gateway in one process."""
        parts = [f"{part}.port" for part in ("master", "volume", "filer")]
        parts += [f"{part}.port.grpc" for part in ("master", "volume", "filer", "s3")]
        inner = [
            f"-{part}={port}" for part, port in zip(parts, free_ports(len(parts)), strict=True)
        ]
        return [
            str(_weed()),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self._data}",
            *inner,
            "-s3",
            f"-s3.port={self.settings.ports.s3}",
            f"-s3.config={self.secrets.path('s3-identities.json')}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            # Every bucket takes several volumes, which are empty until something is written.
            "-volume.max=100",
            "-master.volumeSizeLimitMB=1024",
            "-volume.preStopSeconds=0",
        ]

    def check(self) -> str:
        """Lists the buckets, which takes a signed request."""
        buckets = [bucket["Name"] for bucket in self._client().list_buckets()["Buckets"]]
        return "buckets " + ", ".join(sorted(buckets))

    def set_up(self) -> None:
        """Creates the buckets."""
        client = self._client()
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in sorted({SEARCH_BUCKET, MLFLOW_BUCKET} - there):
            client.create_bucket(Bucket=bucket)

    @property
    def _data(self) -> Path:
        return self.settings.folder / "s3"

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name=REGION,
            aws_access_key_id="admin",
            aws_secret_access_key=self.secrets.read("s3-admin"),
            config=Config(
                connect_timeout=CHECK_TIMEOUT_S,
                read_timeout=CHECK_TIMEOUT_S,
                retries={"max_attempts": 0},
            ),
        )


def _weed() -> Path:
    return Path(sysconfig.get_path("scripts")) / "weed"
