"""An executor: Tune's trainable, which owns workers that stay warm from run to run.

Starting workers takes seconds: processes, the process group, the frozen model, decoded images. A
few-shot run takes about as long. So Tune reuses an executor for one trial after another, and only
the run's configuration changes. Its workers are one endless run of Ray Train: with one worker in
the executor's own process (Ray Train's local mode), with several a group of processes.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.tune import Trainable

from pipeline.executors.mailbox import Line, Mailbox
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Event, Run, one_line
from pipeline.executors.worker import WorkerSetup, serve

# How often an executor that waits for its workers looks at the clock.
LOOK_S = 1.0

# How long workers may take to leave before their processes are ended.
LEAVE_TIMEOUT_S = 20.0


class ExecutorLostError(Exception):
    """An executor cannot go on; its run can, with another one."""


@dataclass(frozen=True)
class ExecutorSetup:
    """What all executors of a job share.

    Attributes:
        worker: What their workers are told.
        resources: What each of them gets.
    """

    worker: WorkerSetup
    resources: ResourcesConfig


class Executor(Trainable):
    """One run after another. A step is an epoch.

    A result holds an `Event`. A run that fails ends its trial with an event, and the executor
    stays; an exception means that the executor is gone, so that Tune puts up another.
    """

    def setup(self, config: dict[str, Any], setup: ExecutorSetup) -> None:  # type: ignore[override]
        """Starts the workers and takes the first run.

        Args:
            config: Holds the `Run`.
            setup: What all executors share.
        """
        self._name = f"executor-{uuid.uuid4().hex[:12]}"
        self._resources = setup.resources
        self._started_at = time.monotonic()
        self._end: Event | None = None
        self._line = Line(_mailbox(setup.resources.workers_per_trial, self._name))
        self._workers = threading.Thread(target=self._work, args=(setup.worker,), daemon=True)
        self._workers.start()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another run; what is still at work is stopped."""
        self._run: Run = new_config["run"]
        self._line.ask("post", self._run)
        return True

    def step(self) -> dict[str, Any]:
        """Lets the run go on and waits for what happens next.

        Raises:
            ExecutorLostError: If the executor is gone.
        """
        if self._end is not None:
            raise ExecutorLostError(self._end.error)
        event = self._next_event()
        if event.kind in ("broken", "lost"):
            self._end = event
            if event.kind == "lost":
                raise ExecutorLostError(event.error)
        # Not a dictionary, which Tune would flatten.
        result = {"event": event, "executor": self._name, "group": self._group()}
        return result | self._figures(event)

    def cleanup(self) -> None:
        """Sends the workers home, and waits until what they held is free."""
        self._line.ask("close")
        self._workers.join(LEAVE_TIMEOUT_S)

    def _group(self) -> str | None:
        """The placement group of workers that have one of their own."""
        group: str | None = self._line.ask("workers")[1]
        return group if self._resources.workers_per_trial > 1 else None

    def _figures(self, event: Event) -> dict[str, Any]:
        """What Tune's rules look at."""
        if event.epoch is None:
            return {"done": event.kind in ("done", "failed")}
        is_last = event.epoch["epoch"] >= event.epoch["epochs"]
        val = event.epoch["val"]
        scores = {"h": val["h"], "mem": val["mem"], "for": val["for_"]}
        return {"done": is_last and not self._run.tested, "epoch": event.epoch["epoch"], **scores}

    def _next_event(self) -> Event:
        while True:
            event: Event | None = self._line.ask("advance", LOOK_S)
            if event is not None:
                return event
            is_open, group = self._line.ask("workers")
            timeout_s = self._resources.start_timeout_s
            if group is None and not is_open and time.monotonic() - self._started_at > timeout_s:
                error = f"its workers are not there within {timeout_s:g} s"
                self._line.ask("end", Event("broken", error=error))

    def _work(self, setup: WorkerSetup) -> None:
        """Runs the workers to their end."""
        from pipeline.executors.trainer import run_workers

        try:
            with tempfile.TemporaryDirectory(prefix="adu-train-") as folder:
                run_workers(partial(serve, setup, self._line), self._resources, folder)
            reason = "its workers have left"
        except BaseException as error:
            reason = one_line(error)
        # A run is not to blame for workers that have never opened their session.
        is_open, _ = self._line.ask("workers")
        self._line.ask("end", Event("lost" if is_open else "broken", error=reason))


def _mailbox(n_workers: int, name: str) -> Any:
    """A mailbox in this process, or for a group of workers an actor beside it."""
    if n_workers == 1:
        return Mailbox(1)
    node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # All ranks may wait in it at the same time, and the executor too.
    options = {"num_cpus": 0, "max_concurrency": n_workers + 4, "name": name}
    return ray.remote(Mailbox).options(label_selector=node, **options).remote(n_workers)
