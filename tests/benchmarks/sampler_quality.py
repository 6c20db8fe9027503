"""How fast samplers find good options: best validation H against the number of trials.

    python -m tests.benchmarks.sampler_quality [--trials 20] [--seeds 5]

The demo, one forget domain, without Ray and without early stopping: every trial is told its H after
its last epoch, one after another. Prints a table; a picture and the curves (JSON) go to results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import optuna
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from adu.config import parse_config
from adu.context import Context, load_context
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from pipeline.demo_data import prepare_demo
from pipeline.jobs.plan import SearchConfig
from pipeline.studies.samplers import make_sampler
from pipeline.studies.space import configure, suggest

DOMAIN = "sketch"
SAMPLERS = ("tpe", "gp", "random")
STARTUP_TRIALS = 5
DEMO = Path(__file__).parents[2] / "search_spaces" / "demo.yaml"
RESULTS = Path("results").absolute()
STYLES = {"tpe": ("o", "-"), "gp": ("s", "--"), "random": ("^", ":")}


def config() -> SearchConfig:
    return parse_config(SearchConfig, yaml.safe_load(DEMO.read_text()), str(DEMO))


@cache
def context() -> Context:
    torch.set_num_threads(1)
    wanted = config().context
    data = wanted.data.model_copy(update={"manifest": prepare_demo(RESULTS / "data").url})
    return load_context(wanted.model_copy(update={"data": data}), torch.device("cpu"))


def search(name: str, seed: int, n_trials: int) -> list[float]:
    """Runs a study; gives the best H after each trial. All begin with random trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    demo = config()
    base = RunConfig(forget=(DOMAIN,), method=demo.method, train=demo.train)
    study = optuna.create_study(direction="maximize")
    for number in range(n_trials):
        study.sampler = make_sampler(name, 1000 * seed + number, STARTUP_TRIALS, False)
        trial = study.ask()
        run = configure(base, suggest(trial, demo.space, base))
        *_, last = Trainer(run, context()).epochs()
        study.tell(trial, last.val.h)
    return np.maximum.accumulate([trial.value for trial in study.trials]).tolist()


def draw(curves: dict[str, list[list[float]]], file: Path) -> None:
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(curves.items()):
        percent = 100 * np.array(runs)
        # Side by side, so that one sampler's bars do not hide another's.
        trials = np.arange(1, percent.shape[1] + 1) + 0.15 * (number - 1)
        marker, line = STYLES[name]
        middle, spread = percent.mean(axis=0), percent.std(axis=0, ddof=1)
        axes.errorbar(
            trials, middle, spread, fmt=line, marker=marker, markevery=3, errorevery=3, label=name
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.axvline(STARTUP_TRIALS + 0.5, color="grey", linewidth=0.8)
    at_the_foot = axes.get_xaxis_transform()
    axes.text(STARTUP_TRIALS + 0.4, 0.02, "random", fontsize=8, ha="right", transform=at_the_foot)
    axes.set(xlabel="trials", ylabel="best validation H, %")
    axes.set_title(f"Samplers on the demo (synthetic), forget {DOMAIN}: mean ± std over seeds")
    axes.legend(loc="lower right")
    figure.savefig(file)


def table(curves: dict[str, list[list[float]]]) -> Table:
    n_trials = len(next(iter(curves.values()))[0])
    marks = [*(n for n in (5, 10, 15, 20, 30, 50) if n < n_trials), n_trials]
    shown = Table(title="best validation H, %, after so many trials", title_justify="left")
    shown.add_column("sampler")
    for n in marks:
        shown.add_column(str(n), justify="right")
    for name, runs in curves.items():
        cells = [[100 * run[n - 1] for run in runs] for n in marks]
        shown.add_row(name, *(f"{mean(cell):.1f} ± {stdev(cell):.1f}" for cell in cells))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    prepare_demo(RESULTS / "data")
    started_at = time.monotonic()
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in SAMPLERS]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        futures = [processes.submit(search, *job, arguments.trials) for job in jobs]
        found = [future.result() for future in futures]
    curves = {
        name: [run for job, run in zip(jobs, found, strict=True) if job[0] == name]
        for name in SAMPLERS
    }
    file = RESULTS / "bench-sampler.png"
    file.with_suffix(".json").write_text(json.dumps(curves))
    draw(curves, file)
    console = Console()
    console.print(table(curves))
    console.print(f"{time.monotonic() - started_at:.0f} s, picture in {file}", soft_wrap=True)
    figures = {name: round(100 * mean(run[-1] for run in runs), 2) for name, runs in curves.items()}
    console.print(json.dumps({"trials": arguments.trials, "best_h": figures}), soft_wrap=True)


if __name__ == "__main__":
    main()
