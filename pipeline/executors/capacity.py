"""How many executors a job may have now: it follows the cluster's nodes, and what is broken."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from adu.errors import UserError
from pipeline.executors.resources import Node, ResourcesConfig, fitting
from pipeline.executors.run import Event

# How often the cluster's nodes are looked at.
LOOK_S = 1.0

# How long no other executor is put up in place of one that could not start.
REST_S = 300.0


class NoExecutorsError(Exception):
    """There is no executor, and none to be expected."""


class Capacity:
    """Counts the executors that a cluster holds.

    Args:
        resources: What each of them gets.
        nodes: The resources of each node, with Ray's names.
    """

    def __init__(self, resources: ResourcesConfig, nodes: Sequence[Node]) -> None:
        self._resources = resources
        self._fit = self._wanted(nodes)
        self._looked_at = self._without_since = time.monotonic()
        self._broken: list[float] = []
        self._groups: dict[str, PlacementGroup] = {}
        # Whether any executor has ever finished an epoch.
        self.has_worked = False

    @property
    def size(self) -> int:
        """Executors that may work now."""
        now = time.monotonic()
        self._broken = [at for at in self._broken if now - at < REST_S]
        return max(self._fit - len(self._broken), 0)

    def look(self, n_at_work: int) -> int:
        """How many executors may work now.

        Args:
            n_at_work: How many do.

        Raises:
            NoExecutorsError: If there has been none for too long.
        """
        now = time.monotonic()
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            # A cluster whose GCS is restarting does not answer; its workers go on.
            with contextlib.suppress(Exception):
                self._fit = self._wanted([n["Resources"] for n in ray.nodes() if n["Alive"]])
                self._clear_groups()
        if n_at_work:
            self._without_since = now
        elif now - self._without_since > self._resources.start_timeout_s:
            raise NoExecutorsError(self._late())
        return self.size

    def seen(self, executor: str, group: str | None) -> None:
        """An executor works, perhaps with a placement group of its own."""
        if group is not None:
            self._groups[executor] = PlacementGroup(ray.PlacementGroupID.from_hex(group))

    def broken(self, event: Event) -> None:
        """An executor could not start: for a while none is put up in its place.

        Raises:
            UserError: If no other one will start either, for a reason that the user can mend.
            NoExecutorsError: If there is no other one.
        """
        self._broken.append(time.monotonic())
        if self.has_worked:
            return
        if event.user_error:
            raise UserError(event.error)
        if not self.size:
            raise NoExecutorsError(f"no executor can start: {event.error}")

    def _wanted(self, nodes: Sequence[Node]) -> int:
        wanted = self._resources.executors
        if self._resources.autoscale and wanted:
            return wanted
        fit = fitting(self._resources, nodes)
        return min(fit, wanted) if wanted else fit

    def _late(self) -> str:
        asked = self._resources
        none = "all lost, and none back" if self.has_worked else "not ready"
        free = ray.available_resources()
        there = ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        return (
            f"resources: executors {none} within {asked.start_timeout_s:g} s: asked for "
            f"{asked.executors or max(self._fit, 1)} x {asked.workers_per_trial} workers of "
            f"{asked.cpus_per_worker} CPU and {asked.gpus_per_worker:g} GPU, "
            f"free in the cluster: {there}"
        )

    def _clear_groups(self) -> None:
        """Removes the placement groups of executors that have died.

        Their workers are gone, but Ray keeps their place until the end of the job.
        """
        for executor, group in list(self._groups.items()):
            try:
                ray.get_actor(executor)
            except ValueError:
                remove_placement_group(group)
                del self._groups[executor]
