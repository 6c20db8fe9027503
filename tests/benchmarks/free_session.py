"""A session whose epochs cost nothing, for `control_plane`. Imports little: executors are many."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.executors.run import Run
from pipeline.executors.worker import WorkerSetup

STATE = bytes(256 * 1024)


class FreeTraining:
    """A run: better the nearer gamma is to 10, and a little with every epoch."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._gamma = config["method"]["gamma"]
        self._n_epochs = config["train"]["epochs"]

    def epochs(self) -> Iterator[dict[str, Any]]:
        for epoch in range(1, self._n_epochs + 1):
            h = 1 / (1 + abs(self._gamma - 10) + 1 / epoch)
            by_domain = {"photo": h, "sketch": 1 - h}
            n_by_domain = {"photo": 9, "sketch": 9}
            scores = {"mem": h, "for_": h, "h": h, "accuracy_by_domain": by_domain}
            yield {
                "epoch": epoch,
                "epochs": self._n_epochs,
                "lr": 0.1,
                "losses": dict.fromkeys(("total", "retain", "forget", "domain"), 1 - h),
                "val": {**scores, "n_by_domain": n_by_domain},
                "train_s": 0.0,
                "val_s": 0.0,
                "images_per_s": 1.0,
            }

    def state(self) -> bytes:
        return STATE


class FreeSession:
    def start(self, run: Run, state: bytes | None) -> FreeTraining:
        return FreeTraining(run.config)

    def close(self) -> None: ...


def open_session(setup: WorkerSetup) -> FreeSession:
    """Waits for the other executors, whose start is not to be measured."""
    config = setup.config
    folder = Path(config["folder"])
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < config["executors"]:
        time.sleep(0.2)
    return FreeSession()
