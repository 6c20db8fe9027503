"""A Tune trial as seen from Tune: a thin client of a warm executor.

Imports little: Tune starts a process for each trial at work, and it should start fast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray.tune import PlacementGroupFactory, Trainable

from pipeline.executors.mailbox import Event, MailboxLink


class TrialClient(Trainable):
    """One trial after another, each on the executor that its study has set it going on.

    A step is an epoch. A run that fails ends its trial with the mailbox's event in the result
    instead of an exception, which would cost this process and its successor's start.
    """

    _mailboxes: Any
    _mailbox: MailboxLink
    _run_id: str
    _epoch: int

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
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        """Waits for the next epoch of the run, having let it go on."""
        event: Event = self._mailbox.ask("advance", self._run_id)
        # The savepoint has what a run needs to go on elsewhere; Tune need not carry it about.
        event = replace(event, command=None)
        done = event.kind != "epoch"
        # Not a dictionary, which Tune would flatten.
        result: dict[str, Any] = {"event": event}
        if event.epoch is not None:
            self._epoch = event.epoch["epoch"]
            done = self._epoch >= event.epoch["epochs"]
            result["h"] = event.epoch["val"]["h"]
        return result | {"done": done, "epoch": self._epoch}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another trial."""
        self._epoch = 0
        self._run_id = new_config["run_id"]
        self._mailbox = MailboxLink(self._mailboxes, new_config["executor"])
        return True


def trial_config(run_id: str, executor: int) -> dict[str, Any]:
    """What a trial's client is told.

    Args:
        run_id: Unique name of the run.
        executor: Number of the executor that has it.
    """
    return {"run_id": run_id, "executor": executor}
