"""A Tune trial as seen from Tune: a thin client of a warm executor.

Imports little: Tune starts a process for each trial at work, and it should start fast.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Trainable

from pipeline.executor import Executors, Lease
from pipeline.mailbox import Command


class TrialClient(Trainable):
    """One trial after another, on the executor that it leases for its life.

    A step is an epoch. A run that fails ends its trial with the mailbox's event in the result
    instead of an exception, which would cost this process and its successor's start.
    """

    _epoch: int
    _assigned_at: float

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], executors: Executors, run: dict[str, Any], study: str
    ) -> None:
        """Leases an executor and posts the first trial's run.

        Args:
            config: The trial's parameters, by dotted path into the run's configuration.
            executors: Where to lease from.
            run: The run's configuration without these parameters.
            study: Name of the study, a part of run ids.
        """
        self._run = run
        self._study = study
        self._lease: Lease = executors.lease()
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
        run = with_parameters(self._run, config)
        self._lease.start(Command(f"{self._study}/{self.trial_id}", run))


def with_parameters(run: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Sets parameters, by dotted path, in a run's configuration.

    Example:
        >>> with_parameters({"method": {"name": "adu"}}, {"method.gamma": 3.0})
        {'method': {'name': 'adu', 'gamma': 3.0}}
    """
    result = copy.deepcopy(dict(run))
    for path, value in parameters.items():
        *parents, name = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return result
