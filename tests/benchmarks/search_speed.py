"""What a search costs beside its training: this engine, Ray's documented pattern, and no Ray.

    python -m tests.benchmarks.search_speed [--trials 30] [--cold-trials 30] [--epochs 5]

Back to back, the same runs of the demo: (a) a Tune trial is a function that starts a TorchTrainer
of its own, as Ray's documentation has it; (b) this engine; (c) the training loop in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table

from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import EpochReport, Trainer
from pipeline.demo_data import prepare_demo
from pipeline.executors.capacity import Capacity
from pipeline.executors.cluster import connect
from pipeline.executors.executor import ExecutorSetup
from pipeline.executors.resources import ResourcesConfig, count_executors
from pipeline.executors.run import Run
from pipeline.executors.session import SESSION
from pipeline.executors.worker import WorkerSetup
from pipeline.results.progress import quiet_ray
from pipeline.studies.config import StudyConfig
from pipeline.studies.queue import RunListener, RunQueue
from pipeline.studies.rules import Rules, make_rule
from pipeline.studies.space import Parameter
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study, StudySpec
from pipeline.studies.tuner import run_queue

DOMAIN = "sketch"
MIB = 2**20
# Options that change nothing about the time a run takes.
SPACE = {
    "method.gamma": Parameter(low=0.1, high=3, log=True, default=1),
    "method.lambda": Parameter(low=0.1, high=3, log=True, default=1),
}
COLD, WARM, BARE = "(a) a TorchTrainer each", "(b) this engine", "(c) no Ray, one process"


@dataclass(frozen=True)
class Figures:
    """What one way of running trials came to.

    Attributes:
        trials: How many were run.
        wall_s: From the start of the first to the end of the last.
        start_s: Before the first, once.
        overhead_s: Median wall time of a trial beside its training.
        train_share: Share of the cores' time inside training steps.
        images_per_s: Training throughput of a busy core.
    """

    trials: int
    wall_s: float
    start_s: float
    overhead_s: float
    train_share: float
    images_per_s: float

    @property
    def trials_per_min(self) -> float:
        """The start included."""
        return 60 * self.trials / (self.wall_s + self.start_s)


def base_run(epochs: int) -> RunConfig:
    train = TrainConfig(epochs=epochs, batch_size=16, warmup_epochs=0)
    return RunConfig(forget=(DOMAIN,), train=train)


def configurations(n: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Runs that cost the same as those that the engine's sampler proposes."""
    for number in range(n):
        values = base_run(epochs).model_dump(mode="json", by_alias=True)
        values["method"]["gamma"] = 0.1 + number / 10
        yield values


# (a) the documented pattern


def train_worker(config: dict[str, Any]) -> None:
    """What the worker of a trial of its own does."""
    import ray.train

    torch.set_num_threads(1)
    context = load_context(ContextConfig.model_validate(config["context"]), torch.device("cpu"))
    trainer = Trainer(RunConfig.model_validate(config["run"]), context)
    for report in trainer.epochs():
        figures = {"h": report.val.h, "train_s": report.train_s, "val_s": report.val_s}
        ray.train.report({**figures, "images_per_s": report.images_per_s})


def cold_trial(config: dict[str, Any]) -> None:
    """A Tune trial that starts a TorchTrainer."""
    from ray import tune
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            train_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=TrainRunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=folder,
                callbacks=[TuneReportCallback()],
            ),
        ).fit()


def cold(context: dict[str, Any], epochs: int, n: int, n_cores: int) -> Figures:
    from ray import tune

    runs = list(configurations(n, epochs))
    # As Tune comes; and its loggers write what is read here.
    engines = os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS")
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(cold_trial, {"CPU": 0.001}),
            param_space={"run": tune.grid_search(runs), "context": context},
            tune_config=tune.TuneConfig(max_concurrent_trials=n_cores),
            run_config=tune.RunConfig(storage_path=folder, name="cold", verbose=0),
        ).fit()
        for result in results:
            if result.error is not None:
                raise result.error
        frames = [result.metrics_dataframe for result in results]
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = engines
    wall_s = time.monotonic() - started_at
    lengths = [len(frame) for frame in frames]
    assert lengths == [epochs] * n, f"epochs of each trial: {lengths}"
    train_s = sum(float(frame["train_s"].sum()) for frame in frames)
    trial_s = [float(frame["time_total_s"].max()) for frame in frames]
    loops_s = [float((frame["train_s"] + frame["val_s"]).sum()) for frame in frames]
    return Figures(
        n,
        wall_s,
        0.0,
        median(total - loop for total, loop in zip(trial_s, loops_s, strict=True)),
        train_s / (wall_s * n_cores),
        mean(float(frame["images_per_s"].mean()) for frame in frames),
    )


# (b) this engine


class Epochs(RunListener):
    """Keeps what epochs took, and once what an executor's processes weigh."""

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self.first_at = math.inf
        self.train_s = 0.0
        self.images_per_s: list[float] = []
        self.beside_mib: dict[str, int] = {}

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        if not self.images_per_s:
            self.first_at = time.monotonic() - report.train_s - report.val_s
            self.beside_mib = beside_workers_mib(self._n_workers)
        self.train_s += report.train_s
        self.images_per_s.append(report.images_per_s)


def beside_workers_mib(n_workers: int) -> dict[str, int]:
    """Unshared memory of the processes that executors of so many workers have beside them."""
    # A single worker is in the executor's own process; some belong to a node.
    training = ("RayTrainWorker",) if n_workers > 1 else ("Executor", "ResourceTrainable")
    others = (*training, "IDLE", "DashboardAgent", "RuntimeEnvAgent")
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            # Ray's title of a worker: ray::ACTOR, or ray::ACTOR.METHOD while it is called.
            _, of_ray, title = process.cmdline()[0].partition("ray::")
            name = title.strip().partition(".")[0]
            if of_ray and not name.startswith(others):
                found[name] = process.memory_full_info().uss // MIB
    return found


def warm(
    context: dict[str, Any], epochs: int, n: int, n_workers: int, folder: Path
) -> tuple[Figures, dict[str, int]]:
    """Also gives what `beside_workers_mib` does."""
    resources = ResourcesConfig(workers_per_trial=n_workers)
    nodes = [node["Resources"] for node in ray.nodes()]
    n_cores = n_workers * count_executors(resources, nodes)
    seen = Epochs(n_workers)
    queue = RunQueue(Capacity(resources, nodes), [seen], threading.Event())
    rules = Rules(queue)
    config = StudyConfig(trials=n, sampler="random", scheduler="none")
    storage = open_storage(None, folder / "optuna.journal")
    name, base, place = f"bench-{n_workers}", base_run(epochs), str(folder / "unfinished")
    study = Study(StudySpec(name, base, SPACE, config, context, storage, name, place))
    queue.add_study(study)
    rules.add(study, make_rule(config, epochs))
    started_at = time.monotonic()
    run_queue(queue, rules, ExecutorSetup(WorkerSetup(SESSION, context), resources))
    wall_s = time.monotonic() - seen.first_at
    assert [record.state for record in study.records] == ["complete"] * n, study.records
    # The first trial of each executor waits for its workers.
    later = [s for overheads_s in queue.overheads_s.values() for s in overheads_s[1:]]
    figures = Figures(
        n,
        wall_s,
        seen.first_at - started_at,
        median(later) if later else math.nan,
        seen.train_s * n_workers / (wall_s * n_cores),
        mean(seen.images_per_s),
    )
    return figures, seen.beside_mib


# (c) no Ray


def bare(context_values: dict[str, Any], epochs: int, n: int) -> Figures:
    torch.set_num_threads(1)
    began = time.monotonic()
    context = load_context(ContextConfig.model_validate(context_values), torch.device("cpu"))
    _ = context.train, context.val
    started_at = time.monotonic()
    train_s, speeds, overheads = 0.0, [], []
    for values in configurations(n, epochs):
        trial_at, loop_s = time.monotonic(), 0.0
        for report in Trainer(RunConfig.model_validate(values), context).epochs():
            train_s += report.train_s
            loop_s += report.train_s + report.val_s
            speeds.append(report.images_per_s)
        overheads.append(time.monotonic() - trial_at - loop_s)
    wall_s = time.monotonic() - started_at
    return Figures(n, wall_s, started_at - began, median(overheads), train_s / wall_s, mean(speeds))


def table(ways: dict[str, Figures]) -> Table:
    shown = Table(title="trials of the demo", title_justify="left")
    shown.add_column("")
    for name in ("trials", "per minute", "overhead, s", "in training, %", "images/s a core"):
        shown.add_column(name, justify="right")
    for name, figures in ways.items():
        shown.add_row(
            name,
            str(figures.trials),
            f"{figures.trials_per_min:.1f}",
            f"{figures.overhead_s:.2f}",
            f"{100 * figures.train_share:.0f}",
            f"{figures.images_per_s:.0f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30, help="of the engine and of no Ray")
    parser.add_argument("--cold-trials", type=int, default=30, help="of the documented pattern")
    parser.add_argument("--epochs", type=int, default=5, help="of each; 1 for the shortest trials")
    arguments = parser.parse_args()
    results = Path("results").absolute()
    data = DataConfig(manifest=prepare_demo(results / "data").url, shots=8, val_shots=4)
    context = ContextConfig(data=data).model_dump(mode="json")
    ways: dict[str, Figures] = {}
    beside_mib = {}
    log = results / "search_speed.log"
    with tempfile.TemporaryDirectory() as folder, quiet_ray(log) as console:
        epochs = arguments.epochs
        if arguments.cold_trials:
            cluster = connect(None)
            n_cores = count_executors(ResourcesConfig(), cluster.nodes)
            ways[COLD] = cold(context, epochs, arguments.cold_trials, n_cores)
            # What it leaves behind in the cluster is not the engine's.
            ray.shutdown()
        connect(None)
        ways[WARM], beside_mib[1] = warm(context, epochs, arguments.trials, 1, Path(folder))
        _, beside_mib[2] = warm(context, 1, 1, 2, Path(folder))
        ray.shutdown()
        ways[BARE] = bare(context, epochs, arguments.trials)
        report(console, ways, epochs, beside_mib)


def report(
    console: Console, ways: dict[str, Figures], epochs: int, beside_mib: dict[int, dict[str, int]]
) -> None:
    console.print(table(ways))
    for n, processes in beside_mib.items():
        listed = ", ".join(f"{name} {mib} MiB" for name, mib in processes.items())
        console.print(f"workers_per_trial {n}: beside them {listed or 'nothing'}", highlight=False)
    engine, alone = ways[WARM], ways[BARE]
    figures: dict[str, Any] = {
        "epochs": epochs,
        "start_s": round(engine.start_s, 1),
        "overhead_s": round(engine.overhead_s, 3),
        "throughput_over_bare": round(engine.images_per_s / alone.images_per_s, 3),
        "train_share": round(engine.train_share, 3),
        "beside_mib": beside_mib,
    }
    for name, each in ways.items():
        figures[f"trials_per_min{name[:3]}"] = round(each.trials_per_min, 2)
    if (cold_ := ways.get(COLD)) is not None:
        figures["ratio"] = round(engine.trials_per_min / cold_.trials_per_min, 2)
        # A long search starts its executors once.
        steady = 60 * engine.trials / engine.wall_s
        figures["ratio_without_start"] = round(steady / cold_.trials_per_min, 2)
    console.print(json.dumps(figures), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
