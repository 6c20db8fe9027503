"""Warm executors: Ray Train worker groups that are started once and serve run after run.

Starting a worker group takes tens of seconds, a few-shot run about as long; so the groups of a
pool stay, with their process group, frozen backbone and decoded images, and only the run's
configuration changes. What a run *is*, they do not know: see `pipeline.executors.worker.Session`.
Who uses which executor, `pipeline.executors.sharing` says.

A pool follows its cluster: it starts with the first executor that is ready, grows when a node
joins, and when one dies its executors start again wherever there is room, while what ran on them
goes on with others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import Field, model_validator

from adu.config import StrictModel
from adu.errors import UserError
from pipeline.executors.cluster import EXECUTOR_THREAD
from pipeline.executors.mailbox import (
    MAX_CALLS,
    Command,
    Event,
    Mailboxes,
    MailboxLink,
    Phase,
    Workers,
)
from pipeline.executors.sharing import Executors, State
from pipeline.executors.worker import WorkerSetup, one_line, serve

# How often a pool looks at the nodes of its cluster.
LOOK_S = 1.0

# How long workers that have died may take to start again, before their run goes on elsewhere:
# somebody else may have taken their place in the cluster.
RETURN_S = 60.0

STATES: dict[Phase, State] = {
    "starting": "starting",
    "ready": "ready",
    "broken": "gone",
    "closed": "gone",
}


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


def count_executors(resources: ResourcesConfig, nodes: Sequence[dict[str, float]]) -> int:
    """How many executors fit on the nodes of a cluster.

    Args:
        resources: What is asked for.
        nodes: Resources of each node, with Ray's names (``CPU``, ``GPU``).

    Raises:
        UserError: If not even one fits, or not as many as asked for, with the arithmetic; never
            if the cluster is to grow.
    """
    fit = _fitting(resources, nodes)
    wanted = resources.executors or max(fit, 1)
    if fit >= wanted or resources.autoscale:
        return wanted
    need = _need(resources)
    total = {name: sum(node.get(name, 0) for node in nodes) for name in need}
    n = resources.workers_per_trial
    asked = " and ".join(f"{wanted * n} x {amount:g} {name}" for name, amount in need.items())
    there = " and ".join(f"{amount:g} {name}" for name, amount in total.items())
    raise UserError(
        f"resources: {wanted} executor{'s' * (wanted > 1)} of {n} worker{'s' * (n > 1)} need "
        f"{asked}; the cluster has {there} on {len(nodes)} node{'s' * (len(nodes) > 1)}, "
        f"enough for {fit}"
    )


def _fitting(resources: ResourcesConfig, nodes: Sequence[dict[str, float]]) -> int:
    need = _need(resources)
    return sum(_fits(need, node) for node in nodes) // resources.workers_per_trial


def _need(resources: ResourcesConfig) -> dict[str, float]:
    need = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def _fits(need: dict[str, float], node: dict[str, float]) -> int:
    # A little slack, since 0.1 * 10 is not quite 1.
    return int(min(node.get(name, 0) / amount + 1e-6 for name, amount in need.items()))


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
    """Starts executors, and owns them until it is closed.

    Each executor is a mailbox and one endless ``TorchTrainer`` run, which a thread of this process
    looks after. Another thread watches them and the cluster.
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
        # Beside the driver: mailboxes that go down with their node would take the runs with them.
        node_id = ray.get_runtime_context().get_node_id()
        mailboxes_class: Any = ray.remote(Mailboxes)
        self.mailboxes = mailboxes_class.options(
            num_cpus=0, max_concurrency=MAX_CALLS, label_selector={"ray.io/node-id": node_id}
        ).remote(resources.workers_per_trial)
        self.executors = Executors()
        self._first = n_executors
        self._crew: dict[int, _Executor] = {}
        self._started_at = 0.0
        self._without_since = 0.0
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._failure: UserError | RuntimeError | None = None
        self._tell: Callable[[str], None] = lambda _: None
        self._on_failure: Callable[[], None] = lambda: None
        self._watcher = threading.Thread(
            target=self._watch, daemon=True, name=f"{EXECUTOR_THREAD}-watcher"
        )

    @property
    def failure(self) -> UserError | RuntimeError | None:
        """Why there are no executors, and will be none."""
        return self._failure

    def start(self) -> None:
        """Starts executors in the background."""
        self._started_at = self._without_since = time.monotonic()
        if self._resources.autoscale:
            # Ray Train would take its request back, and make it anew, every minute.
            timeout_s = str(self._resources.start_timeout_s)
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", timeout_s)
        for _ in range(self._first):
            self._add()
        self._watcher.start()

    def wait_ready(self) -> float:
        """Waits until the workers of a first executor are ready.

        Returns:
            Seconds since `start`.

        Raises:
            UserError: If the session cannot be opened because of what the user gave, or no workers
                start in time.
        """
        # In short turns, so that Ctrl-C is not kept waiting.
        while not self.executors.n_ready and self._failure is None:
            with self._changed:
                self._changed.wait(0.5)
        if self._failure is not None:
            raise self._failure
        return time.monotonic() - self._started_at

    def listen(self, tell: Callable[[str], None], on_failure: Callable[[], None]) -> None:
        """Names who wants to know what happens; called in a thread of the pool.

        Args:
            tell: Is given a line when executors come or go.
            on_failure: Called once, if no executor is left and none has come back in time.
        """
        self._tell, self._on_failure = tell, on_failure
        if self._failure is not None:
            on_failure()

    def interrupt(self) -> None:
        """Ends all runs at once, for their callers; the executors take no more."""
        self.executors.interrupt()
        for executor in list(self._crew.values()):
            executor.link.send("interrupt")

    def dismiss(self) -> None:
        """Sends the workers home without waiting: somebody else may want their GPUs by now."""
        self._closing.set()
        for executor in list(self._crew.values()):
            executor.link.send("close")

    def close(self, timeout_s: float = 10.0) -> None:
        """Shuts the executors down, and waits for that as long as it may."""
        self._closing.set()
        if self._watcher.ident is not None:
            self._watcher.join(timeout_s)
        # Once the watcher, which may have added one, is at its end.
        self.dismiss()
        deadline = time.monotonic() + timeout_s
        for executor in self._crew.values():
            executor.thread.join(max(deadline - time.monotonic(), 0))
        shutil.rmtree(self._folder, ignore_errors=True)

    # The watcher.

    def _watch(self) -> None:
        """Follows the executors' workers, and the nodes that come and go."""
        looked_at = 0.0
        try:
            while not self._closing.is_set():
                self._hear_news()
                if time.monotonic() - looked_at > LOOK_S:
                    # A cluster whose GCS is restarting does not answer; its workers go on.
                    with contextlib.suppress(Exception):
                        self._look_at_nodes()
                    looked_at = time.monotonic()
                self._judge()
        except Exception as error:
            self._fail(RuntimeError(f"executors are no longer watched: {one_line(error)}"))

    def _hear_news(self) -> None:
        """Takes note of what has become of workers, waiting a little for it."""
        news = {executor.news: executor for executor in self._crew.values()}
        ready, _ = ray.wait(list(news), timeout=LOOK_S)
        for reference in ready:
            executor = news[reference]
            workers: Workers = ray.get(reference)
            before = executor.phase
            executor.take_note(workers)
            executor.news = executor.link.send("workers", workers.version)
            self.executors.turn(executor.link.index, STATES[workers.phase])
            if workers.phase != before and not self._closing.is_set():
                self._tell(self._described(executor))
            with self._changed:
                self._changed.notify_all()

    def _look_at_nodes(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        alive = {node["NodeID"] for node in nodes}
        for executor in self._crew.values():
            if executor.is_lost(alive):
                assert executor.workers is not None
                self.executors.turn(executor.link.index, "starting")
                executor.link.send("lose", executor.workers.group)
        fit = _fitting(self._resources, [node["Resources"] for node in nodes])
        wanted = self._resources.executors or fit
        if self._resources.autoscale:
            self.executors.plan(wanted)
            return
        while len(self._crew) < min(fit, wanted) and not self.executors.interrupted:
            self._add()
        self.executors.plan(max(min(fit, len(self._crew)), 1))

    def _judge(self) -> None:
        """Gives up if there is no executor, and none to be expected."""
        if self.executors.n_ready:
            self._without_since = time.monotonic()
            return
        known = [executor.workers for executor in self._crew.values() if executor.workers]
        broken = [workers.trouble for workers in known if workers.phase == "broken"]
        timeout_s = self._resources.start_timeout_s
        if broken and (len(broken) == len(self._crew) or self._never_ready()):
            error, user_error = broken[0].error or "", broken[0].user_error
            self._fail(UserError(error) if user_error else RuntimeError(error))
        elif time.monotonic() - self._without_since > timeout_s:
            self._fail(UserError(self._late(timeout_s)))

    def _described(self, executor: _Executor) -> str:
        what = {
            "ready": "is ready",
            "starting": "lost its workers and starts again where there is room",
            "broken": "cannot start",
        }.get(executor.phase, "has ended")
        at_work = f"{self.executors.n_ready} of {len(self.executors)}"
        return f"executor {executor.link.index} {what}; {at_work} executors at work"

    def _never_ready(self) -> bool:
        return not any(e.workers and e.workers.group for e in self._crew.values())

    def _fail(self, failure: UserError | RuntimeError) -> None:
        if self._failure is None:
            self._failure = failure
            self._closing.set()
            # First, so that nobody takes the end of all runs for that of a study.
            self._on_failure()
            self.executors.interrupt()
        with self._changed:
            self._changed.notify_all()

    def _late(self, timeout_s: float) -> str:
        asked = self._resources
        none = "not ready" if self._never_ready() else "all lost, and none back"
        return (
            f"resources: executors {none} within {timeout_s:g} s: asked for "
            f"{max(len(self._crew), self._first)} x {asked.workers_per_trial} workers of "
            f"{asked.cpus_per_worker} CPU and {asked.gpus_per_worker:g} GPU, "
            f"free in the cluster: {_brief(ray.available_resources())}"
        )

    # Executors.

    def _add(self) -> None:
        """Starts an executor."""
        index = len(self._crew)
        link = MailboxLink(self.mailboxes, index)
        thread = threading.Thread(
            target=self._fit, args=(index,), daemon=True, name=f"{EXECUTOR_THREAD}-{index}"
        )
        self._crew[index] = _Executor(link, thread, link.send("workers", 0))
        self.executors.add(link)
        thread.start()

    def _fit(self, index: int) -> None:
        executor = self._crew[index]
        link = executor.link
        try:
            self._trainer(executor).fit()
        except SystemExit:
            # How Ray tells a waiting thread that this process has left the cluster.
            return
        except Exception as error:
            failure = Event("failed", error=f"executor {link.index}: {one_line(error)}")
            link.send("break_down", failure)

    def _trainer(self, executor: _Executor) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from pipeline.executors.warm_trainer import WarmTrainer

        resources, link = self._resources, executor.link
        per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        return WarmTrainer(
            serve,
            on_failure=executor.note_failure,
            train_loop_config={
                "setup": WorkerSetup(self._session, self._config, resources.cpus_per_worker, link)
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers_per_trial,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            # Restarts are counted by the mailbox, for each run.
            run_config=RunConfig(
                name=f"executor-{link.index}",
                storage_path=self._folder,
                failure_config=FailureConfig(max_failures=-1),
            ),
        )


@dataclass
class _Executor:
    """What a pool knows of one of its executors.

    Attributes:
        link: Its mailbox.
        thread: Where its trainer runs.
        news: A reference to what comes next of its workers.
        workers: What is known of them.
        failed_at: When they failed, by the monotonic clock; None once there are others.
    """

    link: MailboxLink
    thread: threading.Thread
    news: Any
    workers: Workers | None = None
    failed_at: float | None = None

    @property
    def phase(self) -> str:
        return self.workers.phase if self.workers else "starting"

    def take_note(self, workers: Workers) -> None:
        """There is news of its workers."""
        if self.workers is None or workers.group != self.workers.group:
            self.failed_at = None
        self.workers = workers

    def note_failure(self) -> None:
        """Its workers have failed, and others are about to be asked for."""
        if self.failed_at is None:
            self.failed_at = time.monotonic()

    def is_lost(self, alive: set[str]) -> bool:
        """Whether nobody knows when it works again.

        Args:
            alive: The cluster's nodes that are.
        """
        if self.workers is None or self.workers.phase != "ready":
            return False
        is_late = self.failed_at is not None and time.monotonic() - self.failed_at > RETURN_S
        return is_late or not alive.issuperset(self.workers.nodes)


def _brief(amounts: dict[str, float]) -> str:
    wanted = {name: amounts.get(name, 0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
