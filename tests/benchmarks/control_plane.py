"""What a search costs beside training: trials of no work on many executors.

    python -m tests.benchmarks.control_plane [--trials 1000] [--executors 32]

All is real but the training: Ray, here with a core an executor whatever the machine has, Tune and
its executors, Ray Train, Optuna in a journal, savepoints, MLflow in a SQLite file. Before that, the
same on 4 executors: of the head's processes only the driver is to grow with their number.

Prints a table, draws the curve (PNG) and ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.table import Table

from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.capacity import Capacity
from pipeline.executors.cluster import LOCAL_SETTINGS, SETTINGS
from pipeline.executors.executor import ExecutorSetup
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Run
from pipeline.executors.worker import WorkerSetup
from pipeline.results.progress import Progress, console_on, quiet_ray
from pipeline.results.time_left import StudyWork
from pipeline.studies.config import StudyConfig
from pipeline.studies.queue import RunListener, RunQueue
from pipeline.studies.records import TrialRecord
from pipeline.studies.rules import Rules, make_rule
from pipeline.studies.space import Parameter
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study, StudySpec
from pipeline.studies.tuner import run_queue
from pipeline.tracking.projection import project
from pipeline.tracking.server import TrackingConfig, server_of
from pipeline.tracking.truth import AtWork
from tests.pipeline.tracking.made_up import facts_of

STUDY = "sketch"
EPOCHS = 3
WINDOW = 50
ENDS = 200  # the first and last so many trials after the first window are compared
FEW_EXECUTORS = 4
MIB = 2**20

SPACE = {
    "method.gamma": Parameter(low=0.1, high=100, log=True, default=30),
    "method.lambda": Parameter(low=0.1, high=100, log=True, default=10),
    "train.lr": Parameter(low=1e-4, high=0.1, log=True, default=0.0025),
    "method.depth": Parameter(low=1, high=12, default=9),
}


@dataclass(frozen=True)
class Sample:
    """The driver when so many trials had ended.

    Attributes:
        at_s: Wall time.
        cpu_s: Of all its threads, without what measuring takes.
        propose_s: Of it, in proposing trials.
        mib: Unshared memory of the driver and, by name, of the head's other processes.
    """

    trials: int
    at_s: float
    cpu_s: float
    propose_s: float
    mib: dict[str, int]


class TimedStudy(Study):
    """Measures what proposing takes, which grows with the trials that the sampler knows."""

    propose_s = 0.0

    def propose(self) -> Run:
        began_s = time.thread_time()
        run = super().propose()
        self.propose_s += time.thread_time() - began_s
        return run


class Meter(RunListener):
    """Measures after the first trial and after every window."""

    def __init__(self, study: TimedStudy) -> None:
        self.samples: list[Sample] = []
        self._study = study
        self._process = psutil.Process()
        # What measuring itself has taken so far.
        self._own_s = 0.0

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        n = len(self._study.records)
        if n % WINDOW and n > 1:
            return
        cpu_s = self._cpu_s() - self._own_s
        now_s, propose_s = time.monotonic(), self._study.propose_s
        self.samples.append(Sample(n, now_s, cpu_s, propose_s, head_mib()))
        self._own_s = self._cpu_s() - cpu_s

    def _cpu_s(self) -> float:
        cpu = self._process.cpu_times()
        return cpu.user + cpu.system


def head_mib() -> dict[str, int]:
    """Unshared memory of the processes that a cluster has on its head, in MiB."""
    driver = psutil.Process()
    found = Counter({"driver": driver.memory_full_info().uss // MIB})
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            name, line = process.name(), process.cmdline()
            if not name.startswith(("ray::Executor", "ray::ResourceTrainable", "ray::IDLE")):
                script = next((Path(each).stem for each in line if each.endswith(".py")), name)
                found[script] += process.memory_full_info().uss // MIB
    return dict(found)


def measure(n_executors: int, trials: int, sampler: str) -> dict[str, Any]:
    """Runs a search in this process, whose memory and time are the driver's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        for name in ("search", "executors"):
            (folder / name).mkdir(parents=True)
        os.environ |= SETTINGS | LOCAL_SETTINGS
        ray.init("local", num_cpus=n_executors, include_dashboard=False, log_to_driver=False)
        figures = search(n_executors, trials, sampler, folder)
        ray.shutdown()
    return figures


def search(n_executors: int, trials: int, sampler: str, folder: Path) -> dict[str, Any]:
    resources = ResourcesConfig(executors=n_executors)
    base = RunConfig(forget=(STUDY,), train=TrainConfig(epochs=EPOCHS))
    config = StudyConfig(trials=trials, sampler=sampler, scheduler="asha", grace_epochs=1)
    storage = open_storage(None, folder / "optuna.journal")
    place = str(folder / "search" / "unfinished")
    study = TimedStudy(StudySpec(STUDY, base, SPACE, config, {}, storage, STUDY, place))
    facts = facts_of(folder, [(STUDY,)])
    server = server_of(TrackingConfig(), folder / "search")
    tracked = project(server, facts, str(folder), storage, AtWork(), lambda _: None)
    meter = Meter(study)
    with (folder / "progress.log").open("w") as sink:
        started_at = time.monotonic()
        work = StudyWork(trials, EPOCHS, EPOCHS, 0, 0)
        progress = Progress(console_on(sink), "bench", [STUDY], work, n_executors, started_at)
        listeners = [progress, meter]
        nodes = [node["Resources"] for node in ray.nodes()]
        queue = RunQueue(Capacity(resources, nodes), listeners, threading.Event())
        rules = Rules(queue)
        queue.add_study(study)
        rules.add(study, make_rule(config, EPOCHS))
        session = {"folder": str(folder / "executors"), "executors": n_executors}
        worker = WorkerSetup("tests.benchmarks.free_session:open_session", session)
        run_queue(queue, rules, ExecutorSetup(worker, resources))
    ended_at = time.monotonic()
    behind = tracked.finish(600)
    assert not behind, behind
    states = Counter(record.state for record in study.records)
    assert states.total() == trials and not states["failed"], states
    behind_s = time.monotonic() - ended_at
    written_s = time.monotonic() - meter.samples[0].at_s
    return {
        **figures_of(meter.samples),
        "mlflow_behind_s": behind_s,
        "mlflow_rows_per_s": metric_rows(folder) / written_s,
    }


def figures_of(samples: list[Sample]) -> dict[str, Any]:
    first, last = samples[1], samples[-1]
    at = {sample.trials: sample for sample in samples}
    n = min(ENDS, last.trials - first.trials)
    ends = (first, at[first.trials + n]), (at[last.trials - n], last)
    return {
        "trials": last.trials,
        "trials_per_s": (last.trials - first.trials) / (last.at_s - first.at_s),
        "driver_cpu_ms": [cpu_ms(*end) for end in ends],
        "propose_ms": [1000 * (b.propose_s - a.propose_s) / n for a, b in ends],
        "driver_mib": [first.mib["driver"], last.mib["driver"]],
        "head_mib": at[2 * WINDOW].mib,
        "windows": [
            {
                "trials": after.trials,
                "trials_per_s": (after.trials - before.trials) / (after.at_s - before.at_s),
                "driver_cpu_ms": cpu_ms(before, after),
                "driver_mib": after.mib["driver"],
            }
            for before, after in pairwise(samples)
        ],
    }


def cpu_ms(before: Sample, after: Sample) -> float:
    """The driver's CPU time for a trial between two samples."""
    return 1000 * (after.cpu_s - before.cpu_s) / (after.trials - before.trials)


def metric_rows(folder: Path) -> int:
    with sqlite3.connect(folder / "mlflow.db") as database:
        (n_rows,) = database.execute("select count(*) from metrics").fetchone()
    return int(n_rows)


def draw(figures: dict[str, Any], file: Path, title: str) -> None:
    from matplotlib.figure import Figure

    windows = figures["windows"]
    trials = [window["trials"] for window in windows]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = (
        ("trials_per_s", "trials a second"),
        ("driver_cpu_ms", "driver CPU a trial, ms"),
        ("driver_mib", "driver memory, MiB"),
    )
    for axes, (name, label) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(trials, [window[name] for window in windows], marker=".", color="#1f5c99")
        axes.set_ylim(0, 1.15 * max(window[name] for window in windows))
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("trials done")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(file, dpi=110)


def show(figures: dict[str, Any], console: Console) -> None:
    table = Table("trials", "trials/s", "driver CPU, ms a trial", "driver, MiB")
    for window in figures["windows"]:
        table.add_row(*(f"{value:.1f}".removesuffix(".0") for value in window.values()))
    console.print(table)
    for n, mib in figures["head_mib"].items():
        listed = ", ".join(f"{name} {each}" for name, each in mib.items())
        console.print(f"head with {n} executors, MiB: {listed}", highlight=False)


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 2) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help=f"a multiple of {WINDOW}")
    parser.add_argument("--executors", type=int, default=32)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--picture", default="results/control-plane.png")
    arguments = parser.parse_args()
    if arguments.trials < 2 * WINDOW or arguments.trials % WINDOW:
        parser.error(f"--trials {arguments.trials}: must be a multiple of {WINDOW} over {WINDOW}")
    Path("results").mkdir(exist_ok=True)
    head = {}
    with quiet_ray(Path("results/control_plane.log")) as console:
        for n, trials in ((FEW_EXECUTORS, 2 * WINDOW), (arguments.executors, arguments.trials)):
            # Each has a driver of its own.
            with ProcessPoolExecutor(1, get_context("spawn")) as driver:
                figures = driver.submit(measure, n, trials, arguments.sampler).result()
            head[n] = figures["head_mib"]
        figures["head_mib"] = head
        title = (
            f"{arguments.trials} trials of {EPOCHS} free epochs on {arguments.executors} executors"
        )
        draw(figures, Path(arguments.picture), title)
        show(figures, console)
        brief = {name: rounded(value) for name, value in figures.items() if name != "windows"}
        console.print(json.dumps(brief), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
