"""A session without a model: a run is better the nearer gamma is to 10, and with every epoch.

Its configuration: ``seconds`` of an epoch; ``log``, a file with a line for each epoch that was
trained, whoever did; ``refuse``, a file: whoever creates it cannot open the session.
"""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

SESSION = "tests.faults.stubs:open_session"


def open_session(setup):
    config = setup.config
    if "refuse" in config:
        try:
            os.close(os.open(config["refuse"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            raise RuntimeError("no device is to be had")
    return StubSession(config)


class StubSession:
    def __init__(self, config):
        self.config = config

    def start(self, run, state):
        return StubTraining(run, state, self.config)

    def close(self):
        pass


class StubTraining:
    def __init__(self, run, state, config):
        self.run = run
        self.done = pickle.loads(state) if state else 0
        self.config = config

    def epochs(self):
        gamma = self.run.config["method"]["gamma"]
        while self.done < self.run.epochs:
            time.sleep(self.config["seconds"])
            self.done += 1
            with Path(self.config["log"]).open("a") as log:
                log.write(f"{self.run.key} {self.done}\n")
            h = 1 / (1 + abs(gamma - 10) + 1 / self.done)
            yield {
                "epoch": self.done,
                "epochs": self.run.epochs,
                "lr": 0.1,
                "losses": {"total": 1.0 - h},
                "val": {"mem": h, "for_": h, "h": h, "accuracy_by_domain": {}, "n_by_domain": {}},
                "train_s": self.config["seconds"],
                "val_s": 0.0,
                "images_per_s": 1.0,
            }

    def state(self):
        return pickle.dumps(self.done)
