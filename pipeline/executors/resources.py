"""What one executor gets, and how many of them a cluster holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from adu.config import StrictModel
from adu.errors import UserError

# What is asked for an executor beside a group of workers: it takes no core from them.
BESIDE_A_GROUP = {"memory": 300.0 * 2**20}

Node = Mapping[str, Any]


class ResourcesConfig(StrictModel):
    """What one trial gets, and how many run at once."""

    workers_per_trial: int = Field(1, ge=1, description="data-parallel workers of a trial")
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores, and torch threads, of a worker")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of a worker; a fraction shares one")
    executors: int | None = Field(None, ge=1, description="trials at once; unset: as many as fit")
    autoscale: bool = Field(
        False,
        description="the cluster grows to what is asked for: begin with the first executor that "
        "is there (needs 'executors')",
    )
    studies_at_once: int | None = Field(
        None, ge=1, description="studies side by side; unset: as many as there are executors"
    )
    start_timeout_s: float = Field(
        600,
        gt=0,
        description="longest wait for the workers of a first executor, or of any if all are lost",
    )

    @model_validator(mode="after")
    def _scale_to_a_number(self) -> ResourcesConfig:
        if self.autoscale and self.executors is None:
            raise ValueError("autoscale needs executors: how many to ask the cluster for")
        return self

    @property
    def per_worker(self) -> dict[str, float]:
        """What a worker is given, with Ray's names."""
        need = {"CPU": float(self.cpus_per_worker), "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in need.items() if amount}

    @property
    def of_executor(self) -> dict[str, float]:
        """What Tune reserves for an executor itself."""
        return self.per_worker if self.workers_per_trial == 1 else BESIDE_A_GROUP


def fitting(resources: ResourcesConfig, nodes: Sequence[Node]) -> int:
    """How many executors fit on nodes, given the resources of each with Ray's names."""
    need = resources.per_worker
    return sum(_fits(need, node) for node in nodes) // resources.workers_per_trial


def count_executors(resources: ResourcesConfig, nodes: Sequence[Node]) -> int:
    """How many executors are to work on the nodes of a cluster.

    Args:
        resources: What is asked for.
        nodes: Resources of each node, with Ray's names (``CPU``, ``GPU``).

    Raises:
        UserError: If not even one fits, or not as many as asked for, with the arithmetic; never
            if the cluster is to grow.
    """
    fit = fitting(resources, nodes)
    wanted = resources.executors or max(fit, 1)
    if fit >= wanted or resources.autoscale:
        return wanted
    need = resources.per_worker
    total = {name: sum(node.get(name, 0) for node in nodes) for name in need}
    n = resources.workers_per_trial
    asked = " and ".join(f"{wanted * n} x {amount:g} {name}" for name, amount in need.items())
    there = " and ".join(f"{amount:g} {name}" for name, amount in total.items())
    raise UserError(
        f"resources: {wanted} executor{'s' * (wanted > 1)} of {n} worker{'s' * (n > 1)} need "
        f"{asked}; the cluster has {there} on {len(nodes)} node{'s' * (len(nodes) > 1)}, "
        f"enough for {fit}"
    )


def _fits(need: Mapping[str, float], node: Node) -> int:
    # A little slack, since 0.1 * 10 is not quite 1.
    return int(min(node.get(name, 0) / amount + 1e-6 for name, amount in need.items()))
