"""A Tune trial as seen from Tune: a thin client of a warm executor.

Imports little: Tune starts a process for each trial at work, and it should start fast.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray.tune import PlacementGroupFactory, Trainable

from pipeline.executor import Executors, Lease
from pipeline.mailbox import Command


class TrialClient(Trainable):
    """One trial after another, on the executor that it leases for its life.

    A step is an epoch. A run that fails ends its trial with the mailbox's event in the result
    instead of an exception, which would cost this process and its successor's start.
    """

    _epoch: int
    _assigned_at: float

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Clients run beside the driver and need no core: the executors have them all."""
        return PlacementGroupFactory([{"node:__internal_head__": 0.001}])

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], executors: Executors
    ) -> None:
        """Leases an executor and posts the first trial's run.

        Args:
            config: What `trial_config` gives.
            executors: The pool's.
        """
        self._lease: Lease = executors.only(config["executors"]).lease()
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Waits for the next epoch of the run, having let it go on."""
        event = self._lease.advance()
        done = event.kind != "epoch"
        result: dict[str, Any] = {
            "executor": self._lease.index,
            "assigned_at": self._assigned_at,
            # Not a dictionary, which Tune would flatten.
            "event": event,
        }
        if event.epoch is not None:
            self._epoch = event.epoch["epoch"]
            done = self._epoch >= event.epoch["epochs"]
            result["h"] = event.epoch["val"]["h"]
        return result | {"done": done, "epoch": self._epoch}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another trial; the one before is stopped if it still runs."""
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Gives the executor back."""
        self._lease.release()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._epoch = 0
        self._assigned_at = time.time()
        self._lease.start(Command(config["run_id"], config["run"], savepoint=config["savepoint"]))


def trial_config(
    run_id: str, run: dict[str, Any], executors: tuple[int, ...], savepoint: str
) -> dict[str, Any]:
    """What a trial's client is told.

    Args:
        run_id: Unique name of the run.
        run: Its configuration as plain values.
        executors: The executors that its study may use.
        savepoint: File in which the run's last epoch is kept.
    """
    return {
        "run_id": run_id,
        "run": run,
        # Not a list, which Tune would take for something to search.
        "executors": executors,
        "savepoint": savepoint,
    }
