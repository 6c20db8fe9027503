"""A study, a queue and what Tune would tell them, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace

import optuna

from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import Event
from pipeline.studies.config import StudyConfig
from pipeline.studies.listener import RunListener
from pipeline.studies.queue import RunQueue
from pipeline.studies.space import Parameter
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study, StudySpec

EPOCHS = 4
SPACE = {
    "method.gamma": Parameter(low=0.1, high=30, log=True, default=30),
    "method.n_ctx": Parameter(choices=(2, 4, 8), default=8),
}


def make_spec(folder, name="sketch", first=tuple, space=SPACE, commit=lambda: None, **config):
    base = RunConfig(forget=("sketch",), train=TrainConfig(epochs=EPOCHS))
    storage = open_storage(None, folder / "optuna.journal")
    config = StudyConfig(**{"trials": 8, **config})
    place = str(folder / "unfinished" / name)
    return StudySpec(name, base, space, config, {}, storage, name, place, first, commit)


def stored(spec: StudySpec) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=spec.name, storage=spec.storage).get_trials()


def report(epoch, h):
    val = Scores(h, h, h, {"photo": h, "sketch": 1 - h}, {"photo": 3, "sketch": 3})
    return EpochReport(epoch, EPOCHS, 0.1, {"total": 1.0}, val, 0.5, 0.25, 10.0)


def result(epoch, h, before=(), executor="executor-1"):
    """An epoch as an executor passes it to Tune."""
    told = tuple(asdict(report(number, value)) for number, value in before)
    event = Event("epoch", asdict(report(epoch, h)), before=told)
    return {"event": event, "epoch": epoch, "h": h, "executor": executor, "group": None}


def over(kind, error="", executor="executor-1"):
    """The last that an executor says of a run."""
    return {"event": Event(kind, error=error), "executor": executor, "group": None}


class Listener(RunListener):
    def __init__(self):
        self.told = []

    def run_started(self, run):
        self.told.append(("started", run.key))

    def run_epoch(self, run, report, is_news):
        self.told.append(("epoch", run.key, report.epoch, is_news))

    def run_attacked(self, run, done, total):
        self.told.append(("attacked", run.key, done, total))

    def run_ended(self, run, record):
        self.told.append((record.state, run.key))

    def run_suspended(self, run):
        self.told.append(("suspended", run.key))

    def news(self, text):
        self.told.append(("news", text))


class Queue(RunQueue):
    """A queue, with what Tune does with it in one call each."""

    def __init__(self, *studies: Study, size=1, studies_at_once=None):
        self.capacity = SimpleNamespace(
            size=size,
            look=lambda n_at_work: self.capacity.size,
            seen=lambda executor, group: None,
            broken=lambda event: None,
            has_worked=False,
        )
        self.listener = Listener()
        self.stop = threading.Event()
        super().__init__(self.capacity, [self.listener], self.stop, studies_at_once)
        for study in studies:
            self.add_study(study)

    def propose(self, trial_id) -> str | Mapping | None:
        """The key of the next run, or what else the queue says."""
        config = self.suggest(trial_id)
        if isinstance(config, dict):
            self.started(trial_id)
            return config["run"].key
        return config

    def run(self, trial_id, values=(0.5,) * EPOCHS) -> Mapping:
        """Runs a trial that gives a value in each epoch; returns its parameters."""
        run = self.suggest(trial_id)["run"]
        self.started(trial_id)
        for epoch, h in enumerate(values[:-1], start=1):
            self.on_trial_result(trial_id, result(epoch, h))
        self.on_trial_complete(trial_id, result(len(values), values[-1]))
        return run.params

    def heard(self):
        """What listeners were told since the last time."""
        self.deliver()
        told, self.listener.told = self.listener.told, []
        return told
