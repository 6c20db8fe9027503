"""A session without a model, for tests of the executors: it counts epochs and misbehaves on demand.

Run options: ``epochs``, ``seconds`` of each, ``refuse`` at the start, ``raise_in`` and ``die_in``
an epoch (``rank`` 0 or another; dies once, as ``flag`` records), ``meet`` another run in a folder.

`open_search_session` takes the runs that a study proposes and gives reports as `adu` does.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

from adu.errors import UserError
from pipeline.executors.run import Run

# Of a process: also those of runs that were stopped.
begun = 0


def make_run(name, place="", tested=False, epochs=3, **options):
    config = {"forget": ["sketch"], "train": {"epochs": epochs, "seed": 0}, **options}
    return Run("stub", name, "stub", config, {}, str(place or f"/nowhere/{name}"), tested)


class StubRun:
    def __init__(self, run, state):
        import ray.train

        self.run = run.config
        self.n_epochs = run.epochs
        self.done = pickle.loads(state) if state else 0
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        if self.run.get("refuse"):
            raise UserError("option = 3: must be at most 2")

    def epochs(self):
        while self.done < self.n_epochs:
            self._work(self.done + 1)
            self.done += 1
            yield {
                "epoch": self.done,
                "epochs": self.n_epochs,
                "val": {"h": 0.5, "mem": 0.5, "for_": 0.5},
                "pid": os.getpid(),
                "world_size": self.world_size,
                "begun": begun,
            }

    def state(self):
        return pickle.dumps(self.done)

    def test(self, epochs):
        return b"tested after %d" % self.done

    def _work(self, epoch):
        global begun

        import torch
        import torch.distributed as dist

        begun += 1
        if "meet" in self.run:
            self._meet(Path(self.run["meet"]))
        time.sleep(self.run.get("seconds", 0.02))
        if self.rank == self.run.get("rank", 0):
            if self.run.get("raise_in") == epoch:
                raise ValueError(f"boom in epoch {epoch}")
            if self.run.get("die_in") == epoch and not Path(self.run["flag"]).exists():
                Path(self.run["flag"]).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.world_size > 1:
            total = torch.ones(1)
            dist.all_reduce(total)
            assert total == self.world_size

    def _meet(self, folder):
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("nobody came")
            time.sleep(0.01)


class StubSession:
    def start(self, run, state):
        return StubRun(run, state)

    def attack(self, run):
        for done in (1, 2):
            if run.config.get("raise_in") == done:
                raise ValueError(f"boom in attack {done}")
            yield done, 2

    def close(self):
        pass


def open_session(setup):
    if setup.config.get("refuse"):
        raise UserError("manifest x: has no card.json")
    return StubSession()


class StubSearchRun:
    """A run of a study: better the nearer gamma is to 10, and a little with every epoch."""

    def __init__(self, run, state, seconds):
        self.gamma = run["method"]["gamma"]
        self.n_epochs = run["train"]["epochs"]
        self.done = pickle.loads(state) if state else 0
        self.seconds = seconds

    def epochs(self):
        while self.done < self.n_epochs:
            time.sleep(self.seconds)
            self.done += 1
            h = 1 / (1 + abs(self.gamma - 10) + 1 / self.done)
            scores = {"mem": h, "for_": h, "h": h, "accuracy_by_domain": {}, "n_by_domain": {}}
            yield {
                "epoch": self.done,
                "epochs": self.n_epochs,
                "lr": 0.1,
                "losses": {"total": 1.0 - h},
                "val": scores,
                "train_s": self.seconds,
                "val_s": 0.0,
                "images_per_s": 1.0,
            }

    def state(self):
        return pickle.dumps(self.done)


class StubSearchSession:
    def __init__(self, seconds):
        self.seconds = seconds

    def start(self, run, state):
        return StubSearchRun(run.config, state, self.seconds)

    def close(self):
        pass


def open_search_session(setup):
    return StubSearchSession(setup.config["seconds"])
