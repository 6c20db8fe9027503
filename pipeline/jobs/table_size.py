"""A table's protocol in words, and how much it takes: what ``reproduce.py --dry-run`` shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from adu.methods.adu import AduConfig
from adu.methods.bbf import BbfConfig
from adu.methods.recipes import RECIPES
from adu.training.config import TrainConfig
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
from pipeline.jobs.table_plan import ReproduceConfig, TablePlan
from pipeline.results.tables import Row

PAPER = {"shots": 8, "seeds": [1, 2, 3]}

# What a step costs for each of its images, and for each class' caption, in forward passes. LP++
# steps over features that were computed once, BBF tries its candidates on the captions alone.
STEP_COSTS: dict[str, tuple[float, float]] = {
    "zero_shot": (0, 0),
    "null_space": (0, 0),
    "lp++": (0, 0),
    "bbf": (1, BbfConfig().population),
    "coop": (1, STEP_OVER_FORWARD),
    "clipfit": (STEP_OVER_FORWARD, STEP_OVER_FORWARD),
    "maple": (STEP_OVER_FORWARD, STEP_OVER_FORWARD),
}
PROMPTS_COST = (STEP_OVER_FORWARD, 0.0)  # Baseline and ADU with frozen captions
WITHOUT_EPOCHS = ("zero_shot", "null_space")


@dataclass
class TableSize:
    """What the runs of a table come to.

    Attributes:
        runs: How many they are.
        steps: Training steps on batches of images.
        trained: Images in these steps.
        looked_at: Images that are validated or tested on.
        image_forwards: Forward passes of the image tower that all this costs.
        caption_forwards: The same of the text tower.
    """

    runs: int = 0
    steps: int = 0
    trained: int = 0
    looked_at: int = 0
    image_forwards: float = 0.0
    caption_forwards: float = 0.0


def protocol(plan: TablePlan) -> list[str]:
    """How a table's figures come about, in words."""
    config, domains = plan.config, plan.manifest.domains
    sets = {row.size: len(plan.forget_sets(row)) for row in plan.rows}
    n_sets = sum(sets.values())
    all_of_them = ", every proper subset" if n_sets == 2 ** len(domains) - 2 else ""
    by_size = _listed([f"{n} of {size}" for size, n in sets.items()])
    shots = {row.shots or config.context.data.shots: None for row in plan.rows}
    seeds = _listed(map(str, config.seeds))
    lines = [
        f"protocol   {n_sets} forget set{'s' * (n_sets > 1)}{all_of_them} of {len(domains)} "
        f"domains ({by_size}); every run with seed{'s' * (len(config.seeds) > 1)} {seeds}",
        "           H of each run, then the mean over the forget sets of one size, then mean and "
        "standard deviation over the seeds",
        f"           {_listed(map(str, shots))} shots of each domain and class, "
        f"{config.train.epochs} epochs in batches of {config.train.batch_size}; the last epoch's "
        "model is tested",
    ]
    if unlike := _unlike_paper(config):
        lines.append(f"           not as the paper has it: {', '.join(unlike)}")
    return lines


def show_table_plan(plan: TablePlan, console: Console) -> None:
    """Prints a table's protocol, its size, what it needs and how long it may take."""
    manifest, config = plan.manifest, plan.config
    data, backbone = config.context.data, config.context.backbone.name
    synthetic = " (synthetic data)" if manifest.synthetic else ""
    split = manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)
    size = table_size(plan)
    lines = [
        f"table {config.table}: {manifest.name}{synthetic}, {len(manifest.domains)} domains, "
        f"{len(manifest.classes)} classes, backbone {backbone}",
        *(f"left out   {line}" for line in plan.left_out),
        *protocol(plan),
        f"size       {size.runs:,} runs: {len(plan.rows)} rows on their forget sets, with every "
        "seed if anything is trained",
        f"           {len(split.train_rows):,} images for training, {len(split.val_rows):,} for "
        f"validation, {len(manifest.test_rows()):,} for testing",
        f"           {size.steps:,} training steps on {size.trained:,} images; {size.looked_at:,} "
        "images are validated or tested on",
        resources_line(config),
        sizing_line(config, few_shot_bytes(manifest, split, backbone)),
        *_time(config, size),
        "dry run: nothing was started",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def table_size(plan: TablePlan) -> TableSize:
    """Adds up a table's runs."""
    size, data = TableSize(), plan.config.context.data
    n_classes, n_test = len(plan.manifest.classes), len(plan.manifest.test_rows())
    splits = {
        shots: plan.manifest.few_shot_split(shots or data.shots, data.val_shots, data.split_seed)
        for shots in {row.shots for row in plan.rows}
    }
    for row in plan.rows:
        configs = plan.configs(row)
        train, split, n_runs = configs[0].train, splits[row.shots], len(configs)
        image_cost, caption_cost = _step_cost(row, plan.config.method)
        trains = bool(image_cost)
        epochs = 1 if row.method["name"] in WITHOUT_EPOCHS else train.epochs
        n_train, n_domains = len(split.train_rows), len(plan.manifest.domains)
        steps = trains * train.epochs * _steps_of_epoch(train, n_train, n_domains)
        trained = trains * train.epochs * n_train
        looked_at = validated_forwards(split, epochs, data.quick_val_shots, n_full=1) + n_test
        size.runs += n_runs
        size.steps += n_runs * steps
        size.trained += n_runs * trained
        size.looked_at += n_runs * looked_at
        size.image_forwards += n_runs * (trained * image_cost + looked_at)
        size.caption_forwards += n_runs * steps * n_classes * caption_cost
    return size


def _time(config: ReproduceConfig, size: TableSize) -> list[str]:
    from adu.models.openclip import caption_flops, forward_flops

    backbone, n = config.context.backbone.name, n_executors(config)
    a_caption = caption_flops(backbone) / forward_flops(backbone) if size.caption_forwards else 0
    forwards = size.image_forwards + size.caption_forwards * a_caption
    per_s = forwards_per_s(config)
    if per_s is None:
        hours = unit_hours(config, forwards, STEP_OVER_FORWARD)
        return [
            f"time       {hours} / R, with R training images a second of one worker there "
            "('make bench-train' measures it; give --images-per-s R)",
        ]
    hours = unit_hours(config, forwards, per_s)
    return [
        f"time       about {duration(forwards / per_s / n_workers(config))} on {n} "
        f"executor{'s' * (n > 1)} ({source(config)}); in all {hours}, times the price of one",
    ]


def _step_cost(row: Row, method: AduConfig) -> tuple[float, float]:
    known = STEP_COSTS.get(row.method["name"])
    learns_text = known is None and method.text_n_ctx > 0
    return (STEP_OVER_FORWARD, STEP_OVER_FORWARD) if learns_text else known or PROMPTS_COST


def _steps_of_epoch(train: TrainConfig, n_images: int, n_domains: int) -> int:
    """As `adu.data.decoded` cuts an epoch into batches; every domain has as many images."""
    if train.sampling == "plain":
        return math.ceil(n_images / train.batch_size)
    return math.ceil(n_images / n_domains / max(1, train.batch_size // n_domains))


def _unlike_paper(config: ReproduceConfig) -> list[str]:
    """What is set otherwise than in the paper, and in brackets what it has."""
    given: dict[str, Any] = {
        "shots": config.context.data.shots,
        "seeds": list(config.seeds),
        **config.train.model_dump(),
        **config.method.model_dump(by_alias=True),
    }
    recipe = RECIPES["paper"]
    paper: Mapping[str, Any] = {**PAPER, **recipe.train, **recipe.method}
    return [f"{name} {given[name]} ({its})" for name, its in paper.items() if given[name] != its]


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
