"""What a search would do, shown without starting anything."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipeline.jobs.plan import Plan
from pipeline.jobs.proof import n_attacked
from pipeline.jobs.sizing import (
    STEP_OVER_FORWARD,
    duration,
    few_shot_bytes,
    forwards_per_s,
    n_executors,
    n_workers,
    resources_line,
    sizing_line,
    source,
    unit_hours,
    validated_forwards,
)
from pipeline.names import forget_name
from pipeline.studies.race import n_again
from pipeline.studies.rules import deciding_epochs
from pipeline.studies.space import Space


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
    n_bytes = few_shot_bytes(manifest, plan.few_shot_split(), config.context.backbone.name)
    for line in (
        resources_line(config),
        f"budgets    {_budgets(plan)}",
        *_proof(plan),
        sizing_line(config, n_bytes),
        *_time(plan),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    console.print("dry run: nothing was started", highlight=False)


def _studies(plan: Plan) -> Table:
    search, epochs = plan.config.search, plan.config.train.epochs
    table = Table(title=f"{len(plan.forget_sets)} studies", title_justify="left")
    for name in ("forget", "retain", "trials", "epochs", "final runs"):
        table.add_column(name, justify="right" if name in ("trials", "epochs") else "left")
    n_seeds = len(plan.config.final.seeds)
    finals = f"{(plan.n_finals - 1) // n_seeds} x {n_seeds} seeds, best again"
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
    again += f"; the chosen one is run with {search.tries} seeds more" if search.tries else ""
    return f"a study ends after {' or '.join(budgets)}; {stopping} stops trials early{again}"


def _time(plan: Plan) -> list[str]:
    config, n = plan.config, n_executors(plan.config)
    per_s = forwards_per_s(config)
    if per_s is None:
        return [
            "time       is not known: it runs on another machine or a GPU (measure a training step "
            "there with 'make bench-train' and give --images-per-s)",
        ]
    deciding = deciding_epochs(config.search, config.train.epochs)
    trial_s = trial_forwards(plan, deciding) / per_s / config.resources.workers_per_trial
    forwards = search_forwards(plan)
    return [
        f"time       about {duration(forwards / per_s / n_workers(config))} of training on {n} "
        f"executor{'s' * (n > 1)} if no trial is stopped early ({source(config)})",
        f"           a trial takes {duration(trial_s)}, so {n * 3600 / trial_s:.3g} an hour; in "
        f"all {unit_hours(config, forwards, per_s)}, times the price of one",
    ]


def trial_forwards(plan: Plan, deciding: Sequence[int]) -> float:
    """What a run computes, as forward passes of one image.

    Args:
        plan: The search.
        deciding: Epochs that all validation images are looked at after, beside the last one.
    """
    split, epochs = plan.few_shot_split(), plan.config.train.epochs
    quick = plan.config.context.data.quick_val_shots
    steps = epochs * len(split.train_rows) * STEP_OVER_FORWARD
    return steps + validated_forwards(split, epochs, quick, len({*deciding, epochs}))


def search_forwards(plan: Plan) -> float:
    """The same for all trials and final runs of all studies, none of which is stopped early."""
    search = plan.config.search
    n_finals = plan.n_finals + n_attacked(plan)[0]
    deciding = deciding_epochs(search, plan.config.train.epochs)
    forwards = trial_forwards(plan, deciding) * search.trials
    forwards += trial_forwards(plan, ()) * (n_again(search) + n_finals)
    forwards += len(plan.manifest.test_rows()) * (n_finals + 1)
    return forwards * len(plan.forget_sets)
