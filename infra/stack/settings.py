"""Where a stack lives and how large it is; kept in its folder for as long as it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Buckets: what searches read and write, and MLflow's artifacts.
SEARCH_BUCKET, MLFLOW_BUCKET = "adu", "mlflow"
REGION = "us-east-1"

# Ray takes 127.0.0.1 for "the address that others see". Its nodes get loopback addresses of
# their own, each like a machine: the head's, and those of the workers after it.
HEAD_IP = "127.0.0.2"


@dataclass(frozen=True)
class Ports:
    """The ports that clients use; servers talk to each other on any that are free."""

    s3: int = 8333
    postgres: int = 55432
    mlflow: int = 5000
    dashboard: int = 8265
    gcs: int = 6379


@dataclass(frozen=True)
class Settings:
    """A stack.

    Attributes:
        folder: All its data, logs and secrets; absolute.
        ports: Where it listens.
        workers: How many Ray worker nodes.
        cpus: Cores of each worker node.
        gpus: GPUs of each worker node.
    """

    folder: Path
    ports: Ports = field(default_factory=Ports)
    workers: int = 2
    cpus: int = 1
    gpus: int = 0

    @property
    def logs(self) -> Path:
        """One log a server."""
        return self.folder / "logs"

    def as_json(self) -> dict[str, Any]:
        """Plain values; the folder says itself where it is."""
        values = asdict(self)
        del values["folder"]
        return values

    @classmethod
    def from_json(cls, folder: Path, values: dict[str, Any]) -> Settings:
        """What `as_json` gave."""
        return cls(folder, Ports(**values["ports"]), **{k: values[k] for k in _SIZES})


_SIZES = ("workers", "cpus", "gpus")
