"""A Tune trial as seen from Tune: a thin client of a warm executor.

Imports little: Tune starts a process for each trial at work, and it should start fast.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.tune import PlacementGroupFactory, Trainable

from pipeline.executors.mailbox import Command, Event, MailboxLink


class TrialClient(Trainable):
    """One trial after another, each on the executor that its study has leased for it.

    A step is an epoch. A run that fails ends its trial with the mailbox's event in the result
    instead of an exception, which would cost this process and its successor's start.
    """

    _mailboxes: Any
    _mailbox: MailboxLink
    _run_id: str
    _next: Mapping[str, Any] | None
    _epoch: int
    _assigned_at: float

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Clients run beside the driver and need no core: the executors have them all."""
        return PlacementGroupFactory([{"node:__internal_head__": 0.001}])

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], mailboxes: Any
    ) -> None:
        """Takes the first trial.

        Args:
            config: What `trial_config` gives.
            mailboxes: Handle of the actor that holds the executors' mailboxes.
        """
        self._mailboxes = mailboxes
        self._next = config

    def step(self) -> dict[str, Any]:
        """Waits for the next epoch of the run, having let it go on."""
        if self._next is not None:
            # Not before: Tune may have given the trial to another client while this one started.
            self._begin(self._next)
            self._next = None
        event: Event = self._mailbox.ask("advance", self._run_id)
        # The savepoint has what a run needs to go on elsewhere; Tune need not carry it about.
        event = replace(event, command=None)
        done = event.kind != "epoch"
        # Not a dictionary, which Tune would flatten.
        result: dict[str, Any] = {"assigned_at": self._assigned_at, "event": event}
        if event.epoch is not None:
            self._epoch = event.epoch["epoch"]
            done = self._epoch >= event.epoch["epochs"]
            result["h"] = event.epoch["val"]["h"]
        return result | {"done": done, "epoch": self._epoch}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another trial, once Tune asks for its first epoch."""
        self._next = new_config
        return True

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._epoch = 0
        self._assigned_at = time.time()
        self._run_id = config["run_id"]
        self._mailbox = MailboxLink(self._mailboxes, config["executor"])
        self._mailbox.ask(
            "post", Command(self._run_id, config["run"], savepoint=config["savepoint"])
        )


def trial_config(run_id: str, run: dict[str, Any], executor: int, savepoint: str) -> dict[str, Any]:
    """What a trial's client is told.

    Args:
        run_id: Unique name of the run.
        run: Its configuration as plain values.
        executor: Number of the executor that is leased for it.
        savepoint: File in which the run's last epoch is kept.
    """
    return {"run_id": run_id, "run": run, "executor": executor, "savepoint": savepoint}
