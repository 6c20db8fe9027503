"""What a search would do, shown without starting anything.

Tensor names carry their shape: N images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from adu.context import stored_bytes, view_bytes
from pipeline.executors.resources import count_executors
from pipeline.jobs.plan import Plan
from pipeline.jobs.proof import n_attacked
from pipeline.names import forget_name
from pipeline.studies.race import n_again
from pipeline.studies.rules import deciding_epochs
from pipeline.studies.space import Space

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
            console.print(_space(f"otherwise for forget {forget_name(forget)}", changed))
    for line in (*_resources(plan), *_sizing(plan)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print("dry run: nothing was started", highlight=False)


def _studies(plan: Plan) -> Table:
    search, epochs = plan.config.search, plan.config.train.epochs
    table = Table(title=f"{len(plan.forget_sets)} studies", title_justify="left")
    for name in ("forget", "retain", "trials", "epochs", "final runs"):
        table.add_column(name, justify="right" if name in ("trials", "epochs") else "left")
    n_seeds = len(plan.config.final.seeds)
    finals = f"{plan.n_finals // n_seeds} x {n_seeds} seeds, zero-shot"
    for forget in plan.forget_sets:
        retain = ", ".join(d for d in plan.manifest.domains if d not in forget)
        row = (forget_name(forget), retain, str(search.trials), str(epochs), finals)
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
        *_proof(plan),
    ]


def _proof(plan: Plan) -> list[str]:
    """What is attacked after the final runs, if anything is."""
    n_references, n_models = n_attacked(plan)
    if plan.config.prove is None:
        return []
    n_attacks = len(plan.config.prove.battery.attacks())
    return [
        f"prove      {n_attacks} attacks on each of {n_models} models a study, of which "
        f"{n_references} are trained for it (the attacks are not in the time below)"
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
    whole = plan.config.budget
    if whole.trials is not None:
        budgets.append(f"{whole.trials} trials of all studies")
    if whole.wall_time_s is not None:
        budgets.append(f"{whole.wall_time_s:g} s of the search")
    if whole.gpu_hours is not None:
        budgets.append(f"{whole.gpu_hours:g} GPU-hours of all trials")
    names = {"asha": "ASHA", "median": "the median rule", "none": "nothing"}
    stopping = names.get(search.scheduler, search.scheduler)
    again = f"; its best {search.race} are run again" if search.race > 1 else ""
    return f"a study ends after {' or '.join(budgets)}; {stopping} stops trials early{again}"


def _sizing(plan: Plan) -> list[str]:
    """Arithmetic, not a measurement: no image is read and no model loaded."""
    config = plan.config
    n_executors = _executors(plan)
    n_workers = n_executors * config.resources.workers_per_trial
    n_gpus = n_workers * config.resources.gpus_per_worker
    memory_gib = few_shot_bytes(plan) / 2**30
    lines = [
        f"sizing     {n_executors} executor{'s' * (n_executors > 1)}: "
        f"{n_workers * config.resources.cpus_per_worker} CPU and {n_gpus:g} GPU; each node holds "
        f"{memory_gib:.2g} GiB of decoded images, each worker the model"
    ]
    forwards_per_s = _forwards_per_s(plan)
    if forwards_per_s is None:
        return [
            *lines,
            "time       is not known: it runs on another machine or a GPU (measure a training step "
            "there with 'make bench-train' and give --images-per-s)",
        ]
    deciding = deciding_epochs(config.search, config.train.epochs)
    trial_s = trial_forwards(plan, deciding) / forwards_per_s / config.resources.workers_per_trial
    search_s = search_forwards(plan) / forwards_per_s / n_workers
    unit, n_units = ("GPU", n_gpus) if n_gpus else ("worker", n_workers)
    return [
        *lines,
        f"time       about {_duration(search_s)} of training on {n_executors} "
        f"executor{'s' * (n_executors > 1)} if no trial is stopped early ({_source(plan)})",
        f"           a trial takes {_duration(trial_s)}, so {n_executors * 3600 / trial_s:.3g} an "
        f"hour; in all {search_s / 3600 * n_units:.3g} {unit}-hours, times the price of one",
    ]


def trial_forwards(plan: Plan, deciding: Sequence[int]) -> float:
    """What a run computes, as forward passes of one image.

    Args:
        plan: The search.
        deciding: Epochs that all validation images are looked at after, beside the last one.
    """
    split, epochs = plan.few_shot_split(), plan.config.train.epochs
    quick = plan.config.context.data.quick_val_shots
    n_val = len(split.val_rows)
    n_quick = n_val if quick is None else int((split.val_places < quick).sum())
    n_full = len({*deciding, epochs})
    steps = epochs * len(split.train_rows) * STEP_OVER_FORWARD
    return steps + n_full * n_val + (epochs - n_full) * n_quick


def search_forwards(plan: Plan) -> float:
    """The same for all trials and final runs of all studies, none of which is stopped early."""
    search = plan.config.search
    n_finals = plan.n_finals + n_attacked(plan)[0]
    deciding = deciding_epochs(search, plan.config.train.epochs)
    forwards = trial_forwards(plan, deciding) * search.trials
    forwards += trial_forwards(plan, ()) * (n_again(search.race) + n_finals)
    forwards += len(plan.manifest.test_rows()) * (n_finals + 1)
    return forwards * len(plan.forget_sets)


def few_shot_bytes(plan: Plan) -> int:
    """Memory of the decoded training and validation images, of which a node has one copy."""
    from adu.models.openclip import image_side  # takes seconds, which no search waits for

    split = plan.few_shot_split()
    image_size = image_side(plan.config.context.backbone.name)
    train = stored_bytes(plan.manifest, split.train_rows, image_size)
    return train + view_bytes(len(split.val_rows), image_size)


def _executors(plan: Plan) -> int:
    """As many as are asked for, or fit on this machine if it runs here."""
    config = plan.config
    if config.resources.executors is not None:
        return config.resources.executors
    if _runs_elsewhere(plan):
        return 1
    return count_executors(config.resources, [{"CPU": float(os.cpu_count() or 1)}])


def _runs_elsewhere(plan: Plan) -> bool:
    resources = plan.config.resources
    return bool(plan.config.address or resources.autoscale or resources.gpus_per_worker)


def _forwards_per_s(plan: Plan) -> float | None:
    """Forward passes a second of one worker, if there is a way to know."""
    from adu.models.openclip import forward_flops

    config = plan.config
    if config.images_per_s is not None:
        return config.images_per_s * STEP_OVER_FORWARD
    if _runs_elsewhere(plan):
        return None
    return _flops_per_s() / forward_flops(config.context.backbone.name)


def _source(plan: Plan) -> str:
    if plan.config.images_per_s is not None:
        return f"arithmetic from {plan.config.images_per_s:g} training images a second and worker"
    return (
        "arithmetic from the model's size and this machine's speed; expect it within a factor of "
        "two"
    )


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
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
