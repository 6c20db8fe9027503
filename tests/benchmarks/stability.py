"""How much of a run's H is chance, from where it comes, and what makes it less.

    python -m tests.benchmarks.stability parts     # the variance taken apart
    python -m tests.benchmarks.stability variants  # ways to train, over seeds, at one draw
    python -m tests.benchmarks.stability table     # what has been measured so far

On the demo, or with --manifest, --backbone and the options of a run (--set train.lr=0.005) on other
images. Trains with the library alone. A run is a line of --out as soon as it is through, and is not
made again if it is there, so that a measurement that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from adu.context import Context, ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.models.backbone import BackboneConfig
from adu.training.config import RunConfig
from adu.training.trainer import Trainer, TrainingDivergedError
from pipeline.demo_data import prepare_demo
from tests.benchmarks.runs import add_line, read_lines

PARTS = ("split", "weights", "batches", "augmentation")

# What all variants have in common, so that they differ in what their name says alone. No
# warm-up: it is what the first variants are about.
COMMON: dict[str, Any] = {
    "train.epochs": 10,
    "train.batch_size": 16,
    "train.warmup_epochs": 0,
    "train.crop_scale_min": 0.4,
}

# Where no recipe is asked for, which has its own.
NO_RECIPE: dict[str, Any] = {"method.gamma": 1.0, "method.lambda": 3.0, "train.lr": 0.02}

# Accuracy on the retain domains that is no more than this many times chance is a collapse.
COLLAPSE = 2.0

BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        options: Of a run, by path, beside those of the measurement.
        patch: Changes a trainer where there is no option, because it did not help enough for one.
    """

    options: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[Trainer], None] | None = None


def _zero_start(trainer: Trainer) -> None:
    """InstaPG says nothing at first: its output projection starts from zero."""
    instapg: Any = trainer.model.instapg
    torch.nn.init.zeros_(instapg.attention.out_proj.weight)


def _slow_instapg(trainer: Trainer) -> None:
    """InstaPG learns at a tenth of the rate."""
    instapg: Any = trainer.model.instapg
    for parameter in instapg.parameters():
        parameter.register_hook(lambda gradient: 0.1 * gradient)


def _adamw(trainer: Trainer) -> None:
    """AdamW in the place of SGD."""
    group = {"params": trainer._parameters, "scheduled": True}
    trainer._optimizer = torch.optim.AdamW([group])  # type: ignore[assignment]


def _ramp(trainer: Trainer) -> None:
    """lambda rises from 0 over the first half of the steps."""
    model: Any = trainer.model
    losses, step = model.losses, 0
    n_steps = len(trainer.context.train) // trainer.run.train.batch_size * trainer.run.train.epochs

    def ramped(*args: Any) -> dict[str, torch.Tensor]:
        nonlocal step
        terms = losses(*args)
        missing = max(0.0, 1 - step / (n_steps / 2)) * model.config.lambda_
        step += 1
        return {**terms, "total": terms["total"] + missing * terms["mmd"]}

    model.losses = ramped


WARM = {"train.warmup": "linear", "train.warmup_epochs": 2}

VARIANTS: dict[str, Variant] = {
    "as it was": Variant(),
    "warm-up 1": Variant({"train.warmup": "linear", "train.warmup_epochs": 1}),
    "warm-up 2": Variant(WARM),
    "warm-up 5": Variant({"train.warmup": "linear", "train.warmup_epochs": 5}),
    "clip 1": Variant({"train.grad_clip": 1.0}),
    "EMA": Variant({"train.ema_decay": 0.95}),
    "InstaPG from zero": Variant(patch=_zero_start),
    "warm-up 2, clip 3": Variant({**WARM, "train.grad_clip": 3.0}),
    "warm-up 2, EMA": Variant({**WARM, "train.ema_decay": 0.95}),
    "warm-up 2, InstaPG from zero": Variant(WARM, _zero_start),
    "warm-up 2, slow InstaPG": Variant(WARM, _slow_instapg),
    "warm-up 2, half the logits": Variant({**WARM, "train.logit_factor": 0.5}),
    "warm-up 2, AdamW": Variant({**WARM, "train.lr": 0.002}, _adamw),
    "warm-up 2, momentum 0.5": Variant({**WARM, "train.momentum": 0.5, "train.lr": 0.1}),
    "warm-up 2, lambda rises": Variant(WARM, _ramp),
}


class PartlySeeded(Trainer):
    """A trainer whose initial weights, batches and augmentation have a seed each."""

    def __init__(self, run: RunConfig, context: Context, seeds: dict[str, int]) -> None:
        super().__init__(_seeded(run, seeds["weights"]), context)
        self.run = _seeded(run, seeds["batches"])
        self._augmentation = seeds["augmentation"]
        self.gradient_norms: list[float] = []

    def _feed(self) -> Any:
        feed = super()._feed()
        feed._seed = self._augmentation
        return feed

    def _descend(self, losses: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        terms = super()._descend(losses, number)
        gradients = [p.grad.norm() for p in self._parameters if p.grad is not None]
        # After clipping, if there is any: what the optimiser was given.
        self.gradient_norms.append(torch.stack(gradients).norm().item())
        return terms


def _seeded(run: RunConfig, seed: int) -> RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})})


@dataclass(frozen=True)
class Task:
    """One run to make.

    Attributes:
        part: The part of chance whose seed is `seed`, all others 0; "all": all but the draw.
    """

    variant: str
    forget: str
    part: str
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells it from others in a file of results."""
        return {
            "variant": self.variant,
            "forget": self.forget,
            "part": self.part,
            "seed": self.seed,
        }

    def seeds(self) -> dict[str, int]:
        """The seed of every part of chance."""
        moving = PARTS[1:] if self.part == "all" else (self.part,)
        return {part: self.seed if part in moving else 0 for part in PARTS}


class Bench:
    """Makes runs on one data set."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        asked = dict(arguments.set)
        self._options = COMMON | ({} if "method.recipe" in asked else NO_RECIPE) | asked
        self._context = cache(self._load)

    def run(self, task: Task) -> dict[str, Any]:
        """Trains, tests, and says what came out."""
        variant, seeds = VARIANTS[task.variant], task.seeds()
        context = self._context(seeds["split"])
        options = self._options | variant.options
        trainer = PartlySeeded(_run_config(task.forget, options), context, seeds)
        if variant.patch is not None:
            variant.patch(trainer)
        start_s = time.perf_counter()
        facts: dict[str, Any] = {**task.key(), "options": options, "val_h": []}
        try:
            for report in trainer.epochs():
                facts["val_h"].append(round(report.val.h, 4))
                facts["losses"] = {k: round(v, 4) for k, v in report.losses.items()}
            scores = trainer.test().scores
            facts |= scores.as_dict() | {"accuracy_by_domain": scores.accuracy_by_domain}
        except TrainingDivergedError as error:
            facts |= {"mem": 0.0, "for": 0.0, "h": 0.0, "diverged": str(error)}
        facts["collapsed"] = facts["mem"] <= COLLAPSE / len(context.classes)
        facts["gradient_norms"] = [round(norm, 2) for norm in trainer.gradient_norms]
        facts["run_s"] = round(time.perf_counter() - start_s, 1)
        return facts

    def _load(self, split_seed: int) -> Context:
        arguments = self._arguments
        manifest = arguments.manifest or prepare_demo(arguments.folder).url
        backbone = BackboneConfig(name=arguments.backbone) if arguments.backbone else None
        data = DataConfig(
            manifest=manifest, shots=8, val_shots=arguments.val_shots, split_seed=split_seed
        )
        config = ContextConfig(backbone=backbone or BackboneConfig(), data=data)
        return load_context(config, torch.device("cpu"))


def _run_config(forget: str, options: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {"forget": [forget], "method": {"name": "adu"}, "train": {}}
    for path, value in options.items():
        owner, name = path.split(".")
        values[owner][name] = value
    return RunConfig.model_validate(values)


def tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """What is to be measured; a seed of everything before the next, so that half is of use."""
    names = arguments.variant or (["as it was"] if arguments.what == "parts" else list(VARIANTS))
    parts = PARTS if arguments.what == "parts" else ("all",)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in names:
            for part in parts:
                for forget in arguments.forget:
                    yield Task(name, forget, part, seed)


def measure(arguments: argparse.Namespace) -> None:
    """Makes the runs that --out does not hold yet."""
    runs, bench = read(arguments), Bench(arguments)
    for task in tasks(arguments):
        if any(task.key().items() <= run.items() for run in runs):
            continue
        # With seed 0 everywhere, all parts are the same run.
        same = [run for run in runs if task.seed == 0 and run.items() >= _apart(task).items()]
        facts = {**same[0], "part": task.part} if same else bench.run(task)
        runs.append(facts)
        add_line(arguments.out, facts)
        print(*task.key().values(), f"H {100 * facts['h']:.1f}", flush=True)


def _apart(task: Task) -> dict[str, Any]:
    """What two runs have in common that differ in the part of chance at most."""
    return {name: value for name, value in task.key().items() if name != "part"}


def read(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs made so far."""
    return read_lines([arguments.out])


def table(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean and standard deviation of each variant and part; all forget sets, then each.

    "Best of n" is by how much H of the model that is best on validation images, of n seeds, is
    above their mean; of three the mean over all threes there are.

    The interval is of the mean difference to the first variant in H, run by run of one seed and
    forget set: the middle 95 % of bootstrapped means.
    """
    columns = ["variant", "part", "runs", "H", "by forget set", "Mem", "For", "collapses"]
    columns += ["best of n", "difference"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["variant"], run["part"]), []).append(run)
    for (variant, part), own in groups.items():
        h, mem, for_ = ([100 * run[k] for run in own] for k in ("h", "mem", "for"))
        collapses = sum(run["collapsed"] for run in own)
        yield (
            f"| {variant} | {part} | {len(own)} | {statistics.mean(h):.1f} | {_spreads(own)} "
            f"| {statistics.mean(mem):.1f} | {statistics.mean(for_):.1f} | {collapses} "
            f"| {_best_of(own)} "
            f"| {_difference(own, groups.get((next(iter(VARIANTS)), part), []))} |"
        )


def _best_of(runs: Sequence[dict[str, Any]]) -> str:
    """What choosing by validation images gains, forget set by forget set, then the mean."""
    gains: dict[int, list[float]] = {}
    for forget in sorted({run["forget"] for run in runs}):
        own = [run for run in runs if run["forget"] == forget and run["val_h"]]
        mean_h = statistics.mean(run["h"] for run in own)
        for n in sorted({min(3, len(own)), len(own)}):
            chosen = [max(some, key=lambda run: run["val_h"][-1]) for some in combinations(own, n)]
            gain = 100 * (statistics.mean(run["h"] for run in chosen) - mean_h)
            gains.setdefault(n, []).append(gain)
    return "; ".join(
        f"{n}: {', '.join(f'{gain:+.1f}' for gain in its)}, mean {statistics.mean(its):+.1f}"
        for n, its in gains.items()
        if n > 1
    )


def _spreads(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation of H for each forget set, with the latter's 95 % interval."""
    found = []
    for forget in sorted({run["forget"] for run in runs}):
        h = np.array([100 * run["h"] for run in runs if run["forget"] == forget])
        if len(h) < 2:
            continue
        drawn = _resampled(h).std(axis=1, ddof=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        spread = h.std(ddof=1)
        found.append(f"{forget} {h.mean():.1f} ± {spread:.1f} ({low:.1f} to {high:.1f})")
    return ", ".join(found)


def _difference(runs: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> str:
    at = {(run["forget"], run["seed"]): run["h"] for run in first}
    pairs = [(run["h"], at.get((run["forget"], run["seed"]))) for run in runs]
    apart = np.array([100 * (h - other) for h, other in pairs if other is not None])
    if runs is first or len(apart) < 2:
        return ""
    low, high = np.quantile(_resampled(apart).mean(axis=1), [0.025, 0.975])
    return f"{apart.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def _resampled(values: np.ndarray) -> np.ndarray:
    """Bootstrap samples of some values, (BOOTSTRAPS, number of values)."""
    rng = np.random.default_rng(0)
    return values[rng.integers(len(values), size=(BOOTSTRAPS, len(values)))]


def _option(text: str) -> tuple[str, Any]:
    path, value = text.split("=", 1)
    return path, yaml.safe_load(value)


def main() -> None:
    """Measures, or prints what has been."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["parts", "variants", "table"])
    parser.add_argument("--manifest", help="folder or URL; unset: the demo's")
    parser.add_argument("--backbone", help="open_clip model; unset: the demo's")
    parser.add_argument("--val-shots", type=yaml.safe_load, default=4, help="a number, or all")
    parser.add_argument("--forget", nargs="+", default=["sketch", "clipart"])
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), help="unset: all")
    parser.add_argument("--seeds", type=int, default=8, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", type=_option, action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--folder", default="results/data", help="where the demo is drawn")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/stability.jsonl"),
        help="a file for each data set and each choice of --set",
    )
    arguments = parser.parse_args()
    if arguments.what == "table":
        print("\n".join(table(read(arguments))))
    else:
        # More threads than one add up in another order, and to another run.
        torch.set_num_threads(1)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        measure(arguments)


if __name__ == "__main__":
    main()
