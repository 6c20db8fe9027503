"""What a search costs beside its training: this engine, Ray's documented pattern, and no Ray.

    python -m tests.benchmarks.search_speed [--trials 30] [--cold-trials 30] [--epochs 5]

Back to back, the same runs of the demo: (a) a Tune trial is a function that starts a TorchTrainer
of its own, as Ray's documentation has it; (b) this engine; (c) the training loop in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from adu.context import ContextConfig, load_context
from adu.data import DataConfig
from adu.trainer import RunConfig, TrainConfig, Trainer
from pipeline.demo_data import prepare_demo
from pipeline.executors.cluster import connect, leave
from pipeline.executors.pool import ExecutorPool, ResourcesConfig, count_executors
from pipeline.executors.session import SESSION
from pipeline.executors.sharing import Share
from pipeline.results.progress import quiet_ray
from pipeline.studies.samplers import open_storage
from pipeline.studies.searcher import Study, StudyConfig
from pipeline.studies.space import Parameter
from pipeline.studies.study_run import register_trials, run_study

DOMAIN = "sketch"
# Options that change nothing about the time a run takes.
SPACE = {
    "method.gamma": Parameter(low=0.1, high=3, log=True, default=1),
    "method.lambda": Parameter(low=0.1, high=3, log=True, default=1),
}


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


class Epochs:
    """A listener that keeps what the epochs took."""

    def __init__(self) -> None:
        self.train_s = 0.0
        self.images_per_s: list[float] = []

    def trial_restored(self, trial: Any, scores: Any) -> None:
        """Nothing to keep."""

    def trial_started(self, number: int, params: Any) -> None:
        """Nothing to keep."""

    def epoch_ended(self, number: int, report: Any, replayed: bool) -> None:
        """Keeps an epoch."""
        self.train_s += report.train_s
        self.images_per_s.append(report.images_per_s)

    def trial_ended(self, trial: Any) -> None:
        """Nothing to keep."""

    def trial_suspended(self, number: int) -> None:
        """Nothing to keep."""


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
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0"
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


def warm(context: dict[str, Any], epochs: int, n: int, n_cores: int, folder: Path) -> Figures:
    pool = ExecutorPool(SESSION, context, ResourcesConfig(), n_cores)
    pool.start()
    start_s = pool.wait_ready()
    storage = open_storage(None, folder / "optuna.journal")
    config = StudyConfig(trials=n, sampler="random", scheduler="none")
    savepoints = str(folder / "savepoints")
    study = Study("bench", base_run(epochs), SPACE, config, storage, "bench", savepoints)
    epochs_seen = Epochs()
    register_trials(pool.mailboxes)
    started_at = time.monotonic()
    run = run_study(study, Share(pool.executors, study.name), epochs_seen, threading.Event())
    wall_s = time.monotonic() - started_at
    pool.close()
    assert [trial.state for trial in run.trials] == ["complete"] * n
    # The first trial of each executor waits for its client process to start.
    later = [s for overheads_s in run.overheads_s.values() for s in overheads_s[1:]]
    return Figures(
        n,
        wall_s,
        start_s,
        median(later),
        epochs_seen.train_s / (wall_s * n_cores),
        mean(epochs_seen.images_per_s),
    )


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
    log = results / "search_speed.log"
    with tempfile.TemporaryDirectory() as folder, quiet_ray(log) as console:
        cluster = connect(None)
        n_cores = count_executors(ResourcesConfig(), cluster.nodes)
        epochs = arguments.epochs
        if arguments.cold_trials:
            ways["(a) a TorchTrainer each"] = cold(context, epochs, arguments.cold_trials, n_cores)
        ways["(b) this engine"] = warm(context, epochs, arguments.trials, n_cores, Path(folder))
        leave()
        ray.shutdown()
        ways["(c) no Ray, one process"] = bare(context, epochs, arguments.trials)
        report(console, ways, epochs)


def report(console: Console, ways: dict[str, Figures], epochs: int) -> None:
    console.print(table(ways))
    engine, alone = ways["(b) this engine"], ways["(c) no Ray, one process"]
    figures: dict[str, Any] = {
        "epochs": epochs,
        "overhead_s": round(engine.overhead_s, 3),
        "throughput_over_bare": round(engine.images_per_s / alone.images_per_s, 3),
        "train_share": round(engine.train_share, 3),
    }
    for name, each in ways.items():
        figures[f"trials_per_min{name[:3]}"] = round(each.trials_per_min, 2)
    if (cold_ := ways.get("(a) a TorchTrainer each")) is not None:
        figures["ratio"] = round(engine.trials_per_min / cold_.trials_per_min, 2)
        # A long search starts its executors once.
        steady = 60 * engine.trials / engine.wall_s
        figures["ratio_without_start"] = round(steady / cold_.trials_per_min, 2)
    console.print(json.dumps(figures), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
