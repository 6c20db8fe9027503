"""What every command that trains does: joins a cluster, and runs one queue on its executors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adu import storage
from adu.data.cache import ImageCache
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.executors.capacity import Capacity, NoExecutorsError
from pipeline.executors.cluster import Cluster, connect
from pipeline.executors.executor import ExecutorSetup
from pipeline.executors.resources import ResourcesConfig, count_executors
from pipeline.executors.session import SESSION, job_on_node
from pipeline.executors.worker import WorkerSetup
from pipeline.jobs.interrupt import Interrupt
from pipeline.studies.listener import RunListener
from pipeline.studies.queue import RunQueue
from pipeline.studies.rules import Rules
from pipeline.studies.tuner import run_queue

EXIT_FAILED = 1


class Job:
    """A cluster, and the queue that it works through.

    Args:
        address: Of the cluster; None for one of this machine's own.
        resources: What each executor gets; or a function of the cluster that says so.
        interrupt: Says when to end early.
        listeners: Are told what happens.

    Raises:
        UserError: If there is no such cluster, or not even one executor fits.
    """

    def __init__(
        self,
        address: str | None,
        resources: ResourcesConfig | Callable[[Cluster], ResourcesConfig],
        interrupt: Interrupt,
        listeners: list[RunListener],
    ) -> None:
        self.cluster = connect(address)
        # Ray has taken the signals.
        interrupt.install()
        if callable(resources):
            resources = resources(self.cluster)
        self._interrupt = interrupt
        self.resources = resources
        self.n_executors = count_executors(resources, self.cluster.nodes)
        self._capacity = Capacity(resources, self.cluster.nodes)
        at_once = resources.studies_at_once
        self.queue = RunQueue(self._capacity, listeners, interrupt.stop, at_once)
        self.rules = Rules(self.queue)

    @property
    def has_worked(self) -> bool:
        """Whether anything has come of it: what it has left must not be lost any more."""
        return self._capacity.has_worked

    @property
    def room(self) -> int:
        """How many executors may work now."""
        return self._capacity.size

    def run(
        self, context: Mapping[str, Any], probes: Sequence[RunConfig], output: str
    ) -> str | None:
        """Runs the queue to its end, or as far as it is let.

        Args:
            context: Model and images that executors start with, as plain values.
            probes: Configurations that the model must take before anything is trained.
            output: Folder or URL in which runs keep what comes of them.

        Returns:
            Why it has ended before its time, if that was not a signal.

        Raises:
            UserError: If it cannot be started.
        """
        distinct = {probe.model_dump_json(exclude={"forget"}): probe for probe in probes}
        plain = [probe.model_dump(mode="json", by_alias=True) for probe in distinct.values()]
        worker = WorkerSetup(
            SESSION,
            context,
            self.resources.cpus_per_worker,
            self.resources.gpus_per_worker > 0,
            plain,
            output if storage.is_local(output) else None,
        )
        # Executors come and go: what they have read is not read again, on this machine at least.
        cache = ImageCache(job_on_node())
        try:
            with self._interrupt.graceful():
                setup = ExecutorSetup(worker, self.resources)
                run_queue(self.queue, self.rules, setup, self.cluster.head)
        except NoExecutorsError as error:
            if not self.has_worked:
                raise UserError(str(error)) from error
            return f"{error}; go on with --resume"
        finally:
            cache.close()
        return None
