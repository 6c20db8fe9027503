"""What a search would do, shown without starting anything."""

from __future__ import annotations

import os
import time

import torch
from rich.console import Console
from rich.table import Table

from adu.openclip import forward_flops
from pipeline.executor import count_executors
from pipeline.plan import Plan, study_name
from pipeline.space import Space

# A training step costs the forward pass and a backward pass without weight gradients; measured,
# see adu/README.md.
STEP_OVER_FORWARD = 2.4

SPEED_SAMPLE_SIZE = 1024


def show_plan(plan: Plan, console: Console) -> None:
    """Prints the studies, what they search, what they need and how long they may take."""
    manifest, config = plan.manifest, plan.config
    synthetic = " (synthetic data)" if manifest.synthetic else ""
    console.print(
        f"search {plan.name}{synthetic}: {len(manifest.domains)} domains, "
        f"{len(manifest.classes)} classes, method {config.method.name}, "
        f"backbone {config.context.backbone.name}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_studies(plan))
    console.print(_space("what is searched", config.space))
    for forget in plan.forget_sets:
        space = plan.space(forget)
        changed = {path: p for path, p in space.items() if p != config.space.get(path)}
        if changed:
            console.print(_space(f"otherwise for forget {study_name(forget)}", changed))
    for line in (*_resources(plan), *_time(plan)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print("dry run: nothing was started", highlight=False)


def _studies(plan: Plan) -> Table:
    search, epochs = plan.config.search, plan.config.train.epochs
    table = Table(title=f"{len(plan.forget_sets)} studies", title_justify="left")
    for name in ("forget", "retain", "trials", "epochs", "final runs"):
        table.add_column(name, justify="right" if name in ("trials", "epochs") else "left")
    finals = f"3 x {len(plan.config.final.seeds)} seeds, zero-shot"
    for forget in plan.forget_sets:
        retain = ", ".join(d for d in plan.manifest.domains if d not in forget)
        row = (study_name(forget), retain, str(search.trials), str(epochs), finals)
        table.add_row(*row)
    return table


def _space(title: str, space: Space) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("option", "range or choices", "default", "only where"):
        table.add_column(name)
    for path, parameter in space.items():
        conditions = (
            f"{other} = {' or '.join(str(value).lower() for value in values)}"
            for other, values in parameter.when.items()
        )
        values = "fixed" if parameter.fixed else parameter.describe()
        default = str(parameter.default).lower()
        table.add_row(path, values, default, ", ".join(conditions))
    return table


def _resources(plan: Plan) -> list[str]:
    resources = plan.config.resources
    gpus = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    return [
        f"resources  an executor is {resources.workers_per_trial} x "
        f"({resources.cpus_per_worker} CPU{gpus}); a trial at a time on each",
        f"budgets    {_budgets(plan)}",
    ]


def _budgets(plan: Plan) -> str:
    search = plan.config.search
    budgets = [f"{search.trials} trials"]
    if search.wall_time_s is not None:
        budgets.append(f"{search.wall_time_s:g} s")
    if search.target_h is not None:
        budgets.append(f"validation H {100 * search.target_h:g} %")
    if search.patience is not None:
        budgets.append(f"{search.patience} trials without a better one")
    stopping = {"asha": "ASHA", "median": "the median rule", "none": "nothing"}[search.scheduler]
    return f"a study ends after {' or '.join(budgets)}; {stopping} stops trials early"


def _time(plan: Plan) -> list[str]:
    """Arithmetic, not a measurement: no image is read and no model loaded."""
    config = plan.config
    resources = config.resources
    if config.address or resources.autoscale or resources.gpus_per_worker:
        return ["time       cannot be told from here: it runs on another machine or a GPU"]
    here = [{"CPU": float(os.cpu_count() or 1)}]
    n_executors = count_executors(config.resources, here)
    cells = len(plan.manifest.classes) * len(plan.manifest.domains)
    train, val = (cells * n for n in (config.context.data.shots, config.context.data.val_shots))
    per_epoch = train * STEP_OVER_FORWARD + val
    n_finals = 3 * len(config.final.seeds)
    forwards = per_epoch * config.train.epochs * (config.search.trials + n_finals)
    forwards += len(plan.manifest.test_rows()) * (n_finals + 1)
    forwards *= len(plan.forget_sets)
    seconds = forwards * forward_flops(config.context.backbone.name) / _flops_per_s()
    seconds /= n_executors * config.resources.workers_per_trial
    return [
        f"time       about {_duration(seconds)} of training on this machine's {n_executors} "
        "executors if no trial is stopped early (arithmetic from the model's size and this "
        "machine's speed; expect it within a factor of two)"
    ]


def _flops_per_s() -> float:
    """What one core does with matrices."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.rand(SPEED_SAMPLE_SIZE, SPEED_SAMPLE_SIZE)
        _ = a @ a
        started_at = time.perf_counter()
        _ = a @ a
        return 2 * SPEED_SAMPLE_SIZE**3 / (time.perf_counter() - started_at)
    finally:
        torch.set_num_threads(n_threads)


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{max(seconds / 60, 1):.0f} min"
    return f"{seconds / 3600:.1f} h"
