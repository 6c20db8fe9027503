"""Warm executors: Ray Train worker groups that are started once and serve run after run.

Starting a worker group takes tens of seconds, a few-shot run about as long; so the groups of a
pool stay, with their process group, frozen backbone and decoded images, and only the run's
configuration changes. What a run *is*, they do not know: see `pipeline.worker.Session`.

This module imports neither torch nor ray.train until it needs them: trial clients import it too.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from pydantic import Field

from adu.config import StrictModel
from adu.errors import UserError
from pipeline.cluster import EXECUTOR_THREAD
from pipeline.mailbox import Command, Event, Mailbox
from pipeline.worker import WorkerSetup, one_line, serve

LEASE_RETRY_S = 0.05


class ResourcesConfig(StrictModel):
    """What one trial gets, and how many run at once."""

    workers_per_trial: int = Field(1, ge=1, description="data-parallel workers of a trial")
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores, and torch threads, of a worker")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of a worker; a fraction shares one")
    executors: int | None = Field(None, ge=1, description="trials at once; unset: as many as fit")
    studies_at_once: int | None = Field(
        None, ge=1, description="studies side by side; unset: as many as there are executors"
    )
    start_timeout_s: float = Field(600, gt=0, description="longest wait for the workers to start")


def count_executors(resources: ResourcesConfig, nodes: Sequence[dict[str, float]]) -> int:
    """How many executors fit on the nodes of a cluster.

    Args:
        resources: What is asked for.
        nodes: Resources of each node, with Ray's names (``CPU``, ``GPU``).

    Raises:
        UserError: If not even one fits, or not as many as asked for, with the arithmetic.
    """
    need = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    need = {name: amount for name, amount in need.items() if amount}
    workers = sum(_fits(need, node) for node in nodes)
    fit = workers // resources.workers_per_trial
    wanted = resources.executors or max(fit, 1)
    if fit >= wanted:
        return wanted
    total = {name: sum(node.get(name, 0) for node in nodes) for name in need}
    n = resources.workers_per_trial
    asked = " and ".join(f"{wanted * n} x {amount:g} {name}" for name, amount in need.items())
    there = " and ".join(f"{amount:g} {name}" for name, amount in total.items())
    raise UserError(
        f"resources: {wanted} executor{'s' * (wanted > 1)} of {n} worker{'s' * (n > 1)} need "
        f"{asked}; the cluster has {there} on {len(nodes)} node{'s' * (len(nodes) > 1)}, "
        f"enough for {fit}"
    )


def _fits(need: dict[str, float], node: dict[str, float]) -> int:
    # A little slack, since 0.1 * 10 is not quite 1.
    return int(min(node.get(name, 0) / amount + 1e-6 for name, amount in need.items()))


class Lease:
    """One caller's hold of one executor."""

    def __init__(self, index: int, mailbox: Any, tenant: str) -> None:
        self.index = index
        self._mailbox = mailbox
        self._tenant = tenant
        self._run_id = ""

    def start(self, command: Command) -> None:
        """Sets a run going; one that is still in flight is stopped."""
        self._run_id = command.run_id
        ray.get(self._mailbox.post.remote(command))

    def advance(self) -> Event:
        """Lets the run go on and waits for what happens next."""
        event: Event = ray.get(self._mailbox.advance.remote(self._run_id))
        return event

    def release(self) -> None:
        """Gives the executor back."""
        ray.get(self._mailbox.release.remote(self._tenant))


class Executors:
    """The executors of a pool as any process sees them; picklable."""

    def __init__(self, mailboxes: Mapping[int, Any]) -> None:
        self._mailboxes = dict(mailboxes)

    def __len__(self) -> int:
        return len(self._mailboxes)

    def only(self, indices: Sequence[int]) -> Executors:
        """Some of them."""
        return Executors({index: self._mailboxes[index] for index in indices})

    def rather(self, indices: Sequence[int]) -> Executors:
        """All of them, some to be tried first."""
        others = [index for index in self._mailboxes if index not in indices]
        return self.only([*indices, *others])

    @property
    def indices(self) -> tuple[int, ...]:
        """Their numbers in the pool."""
        return tuple(self._mailboxes)

    def lease(self) -> Lease:
        """Waits for a free executor and takes it.

        Raises:
            RuntimeError: If none is left that works.
        """
        tenant = uuid.uuid4().hex
        context = ray.get_runtime_context()
        actor = context.current_actor if context.get_actor_id() else None
        while True:
            gone = 0
            for index, mailbox in self._mailboxes.items():
                answer = ray.get(mailbox.lease.remote(tenant, actor))
                if answer == "leased":
                    return Lease(index, mailbox, tenant)
                gone += answer == "gone"
            if gone == len(self._mailboxes):
                raise RuntimeError("no executor is left")
            time.sleep(LEASE_RETRY_S)


def check_runs(executors: Executors, runs: Sequence[dict[str, Any]]) -> None:
    """Has an executor see whether the model takes runs, without training any.

    Raises:
        UserError: If an option does not fit.
    """
    lease = executors.lease()
    try:
        for number, run in enumerate(runs):
            lease.start(Command(f"check-{number}", run, kind="check"))
            event = lease.advance()
            if event.kind == "failed":
                raise UserError(event.error) if event.user_error else RuntimeError(event.error)
    finally:
        lease.release()


class ExecutorPool:
    """Starts executors, once, and owns them until it is closed.

    Each executor is a mailbox actor and one endless ``TorchTrainer`` run, whose ``fit`` waits in
    a thread of this process.
    """

    def __init__(
        self,
        session: str,
        config: dict[str, Any],
        resources: ResourcesConfig,
        n_executors: int,
    ) -> None:
        self._session = session
        self._config = config
        self._resources = resources
        self._folder = tempfile.mkdtemp(prefix="adu-train-")
        self._started_at = 0.0
        node_id = ray.get_runtime_context().get_node_id()
        # Beside the driver: a mailbox that goes down with its node would take the run with it.
        mailbox_class: Any = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node_id})(
            Mailbox
        )
        self._mailboxes = [
            mailbox_class.remote(resources.workers_per_trial) for _ in range(n_executors)
        ]
        self._threads = [
            threading.Thread(
                target=self._fit,
                args=(index,),
                daemon=True,
                name=f"{EXECUTOR_THREAD}-{index}",
            )
            for index in range(n_executors)
        ]

    @property
    def executors(self) -> Executors:
        """The executors, for callers in any process."""
        return Executors(dict(enumerate(self._mailboxes)))

    def start(self) -> None:
        """Starts all executors in the background."""
        self._started_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def wait_ready(self) -> float:
        """Waits until every executor's workers are ready.

        Returns:
            Seconds since `start`.

        Raises:
            UserError: If the session cannot be opened because of what the user gave, or the
                workers do not start in time.
        """
        timeout_s = self._resources.start_timeout_s
        deadline = self._started_at + timeout_s
        waiting = list(self._mailboxes)
        while waiting:
            # In short turns, so that Ctrl-C is not kept waiting.
            phase, trouble = ray.get(waiting[0].wait_ready.remote(0.5))
            if phase == "broken":
                raise (
                    UserError(trouble.error) if trouble.user_error else RuntimeError(trouble.error)
                )
            if phase != "starting":
                waiting.pop(0)
            elif time.monotonic() > deadline:
                raise UserError(self._late(timeout_s))
        return time.monotonic() - self._started_at

    def interrupt(self) -> None:
        """Ends all runs at once, for their callers; the executors take no more."""
        for mailbox in self._mailboxes:
            mailbox.interrupt.remote()

    def close(self, timeout_s: float = 10.0) -> None:
        """Shuts the executors down, and waits for that as long as it may."""
        for mailbox in self._mailboxes:
            mailbox.close.remote()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _late(self, timeout_s: float) -> str:
        asked = self._resources
        return (
            f"resources: executors not ready within {timeout_s:g} s: asked for "
            f"{len(self._mailboxes)} x {asked.workers_per_trial} workers of "
            f"{asked.cpus_per_worker} CPU and {asked.gpus_per_worker:g} GPU, "
            f"free in the cluster: {_brief(ray.available_resources())}"
        )

    def _fit(self, index: int) -> None:
        mailbox = self._mailboxes[index]
        try:
            self._trainer(index, mailbox).fit()
        except SystemExit:
            # How Ray tells a waiting thread that this process has left the cluster.
            return
        except Exception as error:
            failure = Event("failed", error=f"executor {index}: {one_line(error)}")
            mailbox.break_down.remote(failure)

    def _trainer(self, index: int, mailbox: Any) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from pipeline.warm_trainer import WarmTrainer

        resources = self._resources
        per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        return WarmTrainer(
            serve,
            train_loop_config={
                "setup": WorkerSetup(
                    self._session, self._config, resources.cpus_per_worker, mailbox
                )
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers_per_trial,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            # Restarts are counted by the mailbox, for each run.
            run_config=RunConfig(
                name=f"executor-{index}",
                storage_path=self._folder,
                failure_config=FailureConfig(max_failures=-1),
            ),
        )


def _brief(amounts: dict[str, float]) -> str:
    wanted = {name: amounts.get(name, 0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
