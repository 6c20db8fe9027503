"""A job at work in a thread of the test's process, on the cluster that it is connected to."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import optuna
import psutil
import ray

from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.capacity import Capacity
from pipeline.executors.executor import ExecutorSetup
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.worker import WorkerSetup
from pipeline.studies.config import StudyConfig
from pipeline.studies.listener import RunListener
from pipeline.studies.queue import RunQueue
from pipeline.studies.rules import Rules, make_rule
from pipeline.studies.space import Parameter
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study, StudySpec
from pipeline.studies.tuner import run_queue
from tests.faults.stubs import SESSION

EPOCHS = 4
EPOCH_S = 0.4
# Other work may leave this machine little.
PATIENCE_S = 300


# What the processes are called that train: executors, with and without a run, and their workers.
EXECUTOR_TITLES = ("ray::ResourceTrainable", "ray::Executor", "ray::RayTrainWorker")


def title(process: psutil.Process) -> str:
    """A process' command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def nodes():
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Watcher(RunListener):
    """Keeps what it is told."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running = set()
        self.most_at_once = 0
        self.told = set()
        # Of which nobody can have been told before.
        self.epochs = Counter()
        self.ended = []
        self.suspended = []
        self.lines = []

    def run_started(self, run):
        with self.changed:
            self.running.add(run.key)
            self.most_at_once = max(self.most_at_once, len(self.running))
            self.changed.notify_all()

    def run_epoch(self, run, report, is_news):
        with self.changed:
            self.told.add((run.key, report.epoch))
            self.epochs[run.key, report.epoch] += is_news
            self.changed.notify_all()

    def run_ended(self, run, record):
        with self.changed:
            self.running.discard(run.key)
            self.ended.append(record)
            self.changed.notify_all()

    def run_suspended(self, run):
        with self.changed:
            self.running.discard(run.key)
            self.suspended.append(run.key)
            self.changed.notify_all()

    def news(self, text):
        self.lines.append(text)

    def wait_for(self, true):
        with self.changed:
            assert self.changed.wait_for(true, PATIENCE_S), (self.ended, self.running, self.lines)


class StubJob:
    """Studies of a stub session; see `tests.faults.stubs` for its options.

    Args:
        folder: For all files.
        trials: How many, by study.
        storage: Optuna's; a journal in the folder if None.
        session: Further configuration of the session.
        resources: See `ResourcesConfig`.
    """

    def __init__(
        self, folder: Path, trials: dict[str, int], storage=None, session=None, **resources
    ):
        self.folder = folder
        # Not on the disk that a test fills up.
        self._log = folder.with_name(f"{folder.name}-epochs.log")
        self.storage = open_storage(storage, folder / "optuna.journal")
        self.watcher = Watcher()
        self.stop = threading.Event()
        self.error = None
        asked = ResourcesConfig(**resources)
        queue = RunQueue(Capacity(asked, nodes()), [self.watcher], self.stop)
        rules = Rules(queue)
        for name, n_trials in trials.items():
            study = self._study(name, n_trials)
            queue.add_study(study)
            rules.add(study, make_rule(study.spec.config, EPOCHS))
        config = {"seconds": EPOCH_S, "log": str(self._log), **(session or {})}
        setup = ExecutorSetup(WorkerSetup(SESSION, config), asked)

        def work():
            try:
                run_queue(queue, rules, setup)
            except Exception as error:
                self.error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def _study(self, name, n_trials):
        base = RunConfig(forget=("sketch",), train=TrainConfig(epochs=EPOCHS))
        space = {"method.gamma": Parameter(low=0.1, high=30, log=True, default=30)}
        config = StudyConfig(trials=n_trials, scheduler="none")
        place = str(self.folder / "unfinished" / name)
        return Study(StudySpec(name, base, space, config, {}, self.storage, name, place))

    def wait(self):
        """Returns at its end; raises what has ended it before."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), (self.watcher.running, self.watcher.lines)
        if self.error is not None:
            raise self.error

    def trained(self) -> Counter:
        """How often each epoch was trained, all jobs in the folder together."""
        return Counter(self._log.read_text().splitlines())

    def check_complete(self, trials: dict[str, int], *earlier: StubJob) -> None:
        """All trials are there once, and every epoch was told, here or in an earlier job."""
        found = {name: trial_states(self.storage, name) for name in trials}
        assert found == {
            name: [(number, "COMPLETE", EPOCHS) for number in range(n)]
            for name, n in trials.items()
        }
        watchers = [self.watcher, *(job.watcher for job in earlier)]
        assert set().union(*(watcher.told for watcher in watchers)) == {
            (f"{name}/{number}", epoch)
            for name, n in trials.items()
            for number in range(n)
            for epoch in range(1, EPOCHS + 1)
        }
        news = sum((watcher.epochs for watcher in watchers), Counter())
        assert set(news.values()) == {1}, "an epoch was news twice"
        assert not list(self.folder.glob("unfinished/*/*"))


def trial_states(storage, name):
    """Number, state and epochs of each trial, as Optuna has them."""
    study = optuna.load_study(study_name=name, storage=storage)
    return [
        (trial.number, trial.state.name, len(trial.intermediate_values))
        for trial in study.get_trials()
    ]
