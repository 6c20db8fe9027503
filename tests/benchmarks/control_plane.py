"""What a search costs beside training: trials of near-zero work on many virtual executors.

    python -m tests.benchmarks.control_plane [--trials 1000] [--executors 32]

All is real but the workers: Tune with its clients (a process an executor), Optuna in a journal,
MLflow in a SQLite file, mailboxes and savepoints. 32 Ray Train worker groups would need more memory
than the machine has and measure PyTorch's imports; one actor plays the workers of all executors
against the real mailboxes, and its epochs cost nothing.

Prints a table, draws the curve (PNG) and ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from adu.methods.adu import AduConfig
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.executors.cluster import connect
from pipeline.executors.mailbox import MAX_CALLS, Mailboxes, MailboxLink
from pipeline.executors.sharing import Executors, Share
from pipeline.results.progress import Progress, quiet_ray, trial_key
from pipeline.studies import searcher
from pipeline.studies.samplers import open_storage
from pipeline.studies.searcher import Study, StudyConfig
from pipeline.studies.space import Parameter
from pipeline.studies.study_run import register_trials, run_study
from pipeline.tracking.recorder import Background, TrackedStudy
from pipeline.tracking.tracker import Tracker

WINDOW = 50
ENDS = 200  # the first and last so many trials are compared
MIB = 2**20

SPACE = {
    "method.gamma": Parameter(low=0.1, high=100, log=True, default=30),
    "method.lambda": Parameter(low=0.1, high=100, log=True, default=10),
    "train.lr": Parameter(low=1e-4, high=0.1, log=True, default=0.0025),
    "method.depth": Parameter(low=1, high=12, default=9),
}


class VirtualWorkers:
    """Plays the workers of all executors: takes commands and reports epochs, at no cost."""

    def __init__(self, mailboxes: Any, n_executors: int, state_bytes: int) -> None:
        self._links = [MailboxLink(mailboxes, index) for index in range(n_executors)]
        self._state = bytes(state_bytes)

    async def run(self) -> None:
        """Works until the mailboxes are closed."""
        await asyncio.gather(*(self._serve(link) for link in self._links))

    async def _serve(self, link: MailboxLink) -> None:
        group = await link.send("enter", ())
        while (command := await link.send("take", group)) is not None:
            n_epochs = command.run["train"]["epochs"]
            for epoch in range(1, n_epochs + 1):
                report = _report(command.run, epoch, n_epochs)
                if not await link.send("report", group, command.run_id, report, self._state):
                    break
            else:
                await link.send("finish", group, command.run_id, None)


def _report(run: dict[str, Any], epoch: int, n_epochs: int) -> dict[str, Any]:
    h = 1 / (1 + abs(run["method"]["gamma"] - 10) + 1 / epoch)
    by_domain = {"photo": h, "sketch": 1 - h}
    return {
        "epoch": epoch,
        "epochs": n_epochs,
        "lr": 0.1,
        "losses": dict.fromkeys(("total", "retain", "forget", "domain"), 1 - h),
        "val": {
            "mem": h,
            "for_": h,
            "h": h,
            "accuracy_by_domain": by_domain,
            "n_by_domain": {"photo": 9, "sketch": 9},
        },
        "train_s": 0.0,
        "val_s": 0.0,
        "images_per_s": 1.0,
    }


@dataclass(frozen=True)
class Sample:
    """The driver when a trial had ended."""

    at_s: float
    cpu_s: float
    rss_mib: float
    store_mib: float
    behind: int


class Meter:
    """A study's listener: tells MLflow and the live view, and measures at each trial's end."""

    def __init__(self, tracked: TrackedStudy | None, background: Background, progress: Progress):
        self.samples: list[Sample] = []
        self._tracked = tracked
        self._background = background
        self._progress = progress
        self._process = psutil.Process()
        self._started_at = time.monotonic()

    def trial_restored(self, trial: Any, scores: Any) -> None:
        raise AssertionError("nothing is resumed here")

    def trial_started(self, number: int, params: Any) -> None:
        if self._tracked:
            self._tracked.trial_started(number, params)
        self._progress.run_started("sketch", trial_key(number), 1)

    def epoch_ended(self, number: int, report: EpochReport, replayed: bool) -> None:
        if self._tracked:
            self._tracked.epoch_ended(number, report, replayed)
        self._progress.run_epoch("sketch", trial_key(number), report)

    def trial_ended(self, trial: Any) -> None:
        if self._tracked:
            self._tracked.trial_ended(trial)
        self._progress.trial_ended("sketch", trial)
        n = len(self.samples)
        store_mib = _store_mib() if n % WINDOW == 0 else self.samples[-1].store_mib
        cpu = self._process.cpu_times()
        self.samples.append(
            Sample(
                time.monotonic() - self._started_at,
                cpu.user + cpu.system,
                self._process.memory_info().rss / MIB,
                store_mib,
                self._background._calls.qsize(),
            )
        )

    def trial_suspended(self, number: int) -> None:
        raise AssertionError("nothing is interrupted here")


class Clock:
    """Adds up what the driver's thread spends in some functions."""

    def __init__(self) -> None:
        self.spent_s: dict[str, list[float]] = {}

    def watch(self, owner: Any, name: str) -> None:
        """Measures a method from now on."""
        function = getattr(owner, name)
        spent_s = self.spent_s.setdefault(name, [])

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent_s.append(time.thread_time() - started)

        setattr(owner, name, timed)


def _store_mib() -> float:
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    used: int = stats.store_stats.object_store_bytes_used
    return used / MIB


def measure(arguments: argparse.Namespace, folder: Path, console: Any) -> dict[str, Any]:
    connect(None)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    options = {"num_cpus": 0, "max_concurrency": MAX_CALLS, "label_selector": here}
    mailboxes = ray.remote(Mailboxes).options(**options).remote(1)
    executors = Executors()
    for index in range(arguments.executors):
        executors.add(MailboxLink(mailboxes, index))
        executors.turn(index, "ready")
    workers = ray.remote(VirtualWorkers).options(num_cpus=0, max_concurrency=10)
    workers = workers.remote(mailboxes, arguments.executors, arguments.state_kib * 1024)
    working = workers.run.remote()
    register_trials(mailboxes)

    base = RunConfig(
        forget=("sketch",), method=AduConfig(), train=TrainConfig(epochs=arguments.epochs)
    )
    config = StudyConfig(
        trials=arguments.trials, sampler=arguments.sampler, scheduler="asha", grace_epochs=1
    )
    storage = open_storage(None, folder / "optuna.journal")
    study = Study("sketch", base, SPACE, config, storage, "bench", str(folder / "savepoints"))
    progress = Progress(
        console, "bench", ["sketch"], arguments.trials, arguments.executors, 0, time.monotonic()
    )
    background = Background()
    tracked = None
    if arguments.tracking != "none":
        uri = None if arguments.tracking == "sqlite" else arguments.tracking
        tracker = Tracker(uri, folder, "bench")
        tracked = TrackedStudy(
            lambda: tracker,
            background,
            lambda it: it.start_study("bench", "bench", {}, {}),
            {"forget": "sketch"},
        )
    clock = Clock()
    for name in ("suggest", "on_trial_result", "on_trial_complete"):
        clock.watch(searcher.StudySearch, name)
    meter = Meter(tracked, background, progress)
    share = Share(executors, "sketch")
    started = time.monotonic()
    run = run_study(study, share, meter, threading.Event())
    search_s = time.monotonic() - started
    if tracked is not None:
        tracked.end("FINISHED", {})
    background.flush(600)
    flushed_s = time.monotonic() - started
    for index in range(arguments.executors):
        MailboxLink(mailboxes, index).ask("close")
    ray.get(working)
    assert len(run.trials) == arguments.trials, run.trials[-1]
    assert all(trial.state != "failed" for trial in run.trials)
    return _figures(meter.samples, clock, search_s, flushed_s, folder)


def _figures(
    samples: list[Sample], clock: Clock, search_s: float, flushed_s: float, folder: Path
) -> dict[str, Any]:
    windows = []
    for first in range(0, len(samples) - WINDOW + 1, WINDOW):
        before, after = samples[max(first - 1, 0)], samples[first + WINDOW - 1]
        windows.append(
            {
                "trials": first + WINDOW,
                "trials_per_s": WINDOW / (after.at_s - before.at_s),
                "driver_cpu_ms": 1000 * (after.cpu_s - before.cpu_s) / WINDOW,
                "driver_rss_mib": after.rss_mib,
                "store_mib": after.store_mib,
                "mlflow_behind": after.behind,
            }
        )
    # The clients' start is not a cost of trials.
    begin = min(WINDOW, len(samples) // 4)
    n = min(ENDS, (len(samples) - begin) // 2)
    first_ms = 1000 * (samples[begin + n - 1].cpu_s - samples[begin - 1].cpu_s) / n
    last_ms = 1000 * (samples[-1].cpu_s - samples[-1 - n].cpu_s) / n
    figures = {
        "trials": len(samples),
        "search_s": search_s,
        "trials_per_s": (len(samples) - begin) / (samples[-1].at_s - samples[begin - 1].at_s),
        "driver_cpu_ms_first": first_ms,
        "driver_cpu_ms_last": last_ms,
        "driver_rss_mib": samples[-1].rss_mib,
        "store_mib": max(sample.store_mib for sample in samples),
        "mlflow_behind_s": flushed_s - search_s,
        "mlflow_rows_per_s": _metric_rows(folder) / flushed_s,
        "windows": windows,
    }
    for name, spent_s in clock.spent_s.items():
        half = len(spent_s) // 2
        figures[f"{name}_ms"] = [
            round(1000 * sum(part) * 2 / len(samples), 2)
            for part in (spent_s[:half], spent_s[half:])
        ]
    return figures


def _metric_rows(folder: Path) -> int:
    file = folder.parent / "mlflow.db"
    if not file.exists():
        return 0
    with sqlite3.connect(file) as database:
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
        ("driver_rss_mib", "driver memory, MiB"),
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


def show(figures: dict[str, Any], console: Any) -> None:
    console.print("trials   trials/s   driver ms/trial   driver MiB   store MiB   MLflow behind")
    for window in figures["windows"]:
        console.print(
            f"{window['trials']:6d}   {window['trials_per_s']:8.1f}   "
            f"{window['driver_cpu_ms']:15.1f}   {window['driver_rss_mib']:10.0f}   "
            f"{window['store_mib']:9.1f}   {window['mlflow_behind']:13d}",
            highlight=False,
        )
    for name, value in figures.items():
        if name.endswith("_ms") and isinstance(value, list):
            console.print(f"{name}, a trial, first and second half: {value}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--executors", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--state-kib", type=int, default=256, help="training state of an epoch")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--tracking", default="sqlite", help="sqlite, none or an MLflow URI")
    parser.add_argument("--picture", default="results/control-plane.png")
    arguments = parser.parse_args()
    Path("results").mkdir(exist_ok=True)
    log = Path("results/control_plane.log")
    with tempfile.TemporaryDirectory(prefix="adu-bench-") as temporary, quiet_ray(log) as console:
        folder = Path(temporary) / "search"
        folder.mkdir()
        with (Path(temporary) / "progress.log").open("w") as sink:
            from pipeline.results.progress import console_on

            figures = measure(arguments, folder, console_on(sink))
        ray.shutdown()
        title = (
            f"{arguments.trials} trials of {arguments.epochs} free epochs on "
            f"{arguments.executors} virtual executors"
        )
        draw(figures, Path(arguments.picture), title)
        show(figures, console)
        brief = {name: value for name, value in figures.items() if name != "windows"}
        rounded = {n: round(v, 2) if isinstance(v, float) else v for n, v in brief.items()}
        console.print(json.dumps(rounded), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
