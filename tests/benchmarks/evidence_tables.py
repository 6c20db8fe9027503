"""What attacks get out of the model of each method: the tables of "Is it gone?" in adu/README.md.

    python -m tests.benchmarks.evidence_tables record [--share 1/2]
    python -m tests.benchmarks.evidence_tables table

On the demo, or with --manifest, --backbone and --space on other images. Trains and attacks with the
library alone, on one thread. A model is a line of a file as soon as it has been attacked, and is
not attacked again if it is there, so that a measurement that was stopped goes on.

All methods are trained alike, as --space and a recipe say (ADU's `stable` where none is named), but
for one number: the learning rate, of BBF the first step size, is the recipe's, a quarter or four
times it, whichever has the highest H on validation images with seed 0 and the first forget set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import pandas as pd

from adu.evaluation.evaluate import evaluate_test
from adu.evidence import references
from adu.evidence.attacks import BatteryConfig, Figures
from adu.evidence.bench import Outcome
from adu.evidence.proof import ProofConfig
from adu.evidence.subject import Material, MaterialConfig, Subject
from adu.evidence.verdict import estimate, standings
from adu.methods import Method
from adu.methods.recipes import RECIPES
from adu.models.precision import autocast
from adu.training.config import RunConfig
from adu.training.trainer import Trainer, TrainingDivergedError
from pipeline.results.evidence import with_interval
from tests.benchmarks.runs import (
    Line,
    add_arguments,
    add_line,
    load_data,
    own_share,
    read_lines,
    record_or_show,
    share_file,
    training,
)

ENDS = (references.UNTOUCHED, references.KNOWS_NOTHING)
SHOWN_LESS, OURS = "adu, never shown", "adu"
BASELINE, FORGET_ONLY = "baseline", "forget loss alone"
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": "zero_shot"} for name in ENDS},
    SHOWN_LESS: {"name": "adu", "recipe": "stable"},
    OURS: {"name": "adu", "recipe": "stable"},
    "adu, paper": {"name": "adu", "recipe": "paper"},
    BASELINE: {"name": "baseline"},
    FORGET_ONLY: {"name": "baseline", "memorize_weight": 0.0},
    **{name: {"name": name} for name in ("clipfit", "lp++", "coop", "maple", "bbf", "null_space")},
}
# The controls have the rate of what they control.
RATE_OF = {SHOWN_LESS: OURS, FORGET_ONLY: BASELINE}
NO_RATE = (*ENDS, "lp++", "null_space")
FACTORS = (0.25, 1.0, 4.0)
UNCOUNTED = ("membership", "novel", "collateral")
COUNTED = [name for name in BatteryConfig.model_fields if name not in UNCOUNTED]
COLUMNS = ("mem", "for", "h", "distance", *COUNTED, "AUC, forgotten shots")


class Bench:
    """Trains and attacks on one data set, and keeps a line of each model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._train = training(arguments)
        # Without rates to choose, validation images decide nothing.
        self._context = load_data(arguments, **({"val_shots": 1} if arguments.no_rates else {}))
        material = MaterialConfig(precision=self._train.get("precision", "fp32"))
        self._proof = ProofConfig(quick=True, material=material).written_out()
        self._material = cache(self._open)
        self._shown_less: dict[tuple[str, int], Method] = {}

    def record(self) -> None:
        """Attacks what has not been attacked."""
        for seed, forget, name in own_share(list(tasks(self._arguments)), self._arguments.share):
            key = {"method": name, "forget": forget, "seed": seed}
            if any(key.items() <= line.items() for line in read(self._arguments, "models")):
                continue
            line: Line = {**key, "factor": self._factor(name)}
            start_s = time.process_time()
            try:
                line |= self._attacked(name, forget, seed, line["factor"])
            except TrainingDivergedError as error:
                line["diverged"] = str(error)
            line["cpu_s"] = round(time.process_time() - start_s, 1)
            self._write("models", line)
            print(seed, forget, name, f"H {line.get('h', 0):.3f}, {line['cpu_s']} s", flush=True)

    def _attacked(self, name: str, forget: str, seed: int, factor: float) -> Line:
        """What a model scores on test images, and what attacks get out of it."""
        run, model, _ = self._trained(name, forget, seed, factor)
        if name == SHOWN_LESS:
            self._shown_less = {(forget, seed): model}
        # It came right before; without it nobody can tell what was a shot.
        reference = self._shown_less.get((forget, seed)) if name == OURS else None
        subject = Subject(name, seed, run, model, self._material(forget), reference)
        battery = self._proof.battery.attacks()
        found = {attack: asdict(its.run(subject)) for attack, its in battery.items()}
        with autocast(self._proof.material.precision, self._context.device):
            scores = evaluate_test(model, self._context, run.forget).scores
        return {**scores.as_dict(), "found": found}

    def _open(self, forget: str) -> Material:
        context = self._context
        return Material(context, context.manifest, (forget,), self._proof.material)

    def _trained(
        self, name: str, forget: str, seed: int, factor: float
    ) -> tuple[RunConfig, Method, float]:
        """A run, what it has trained, and its H on validation images."""
        method = dict(METHODS[name])
        train = {**RECIPES[method.get("recipe", "stable")].train, **self._train, "seed": seed}
        train["lr"] *= factor
        if name == "bbf":
            method["sigma"] = factor
        run = RunConfig.model_validate({"forget": (forget,), "method": method, "train": train})
        context = self._context
        if name == references.KNOWS_NOTHING:
            task = context.task(run.forget)
            return run, references.knows_nothing(context.backbone, task, seed), 0.0
        what = references.NEVER_SHOWN if name == SHOWN_LESS else name
        trainer = Trainer(run, references.shown_to(what, run, context), deciding=())
        val_h = [report.val.h for report in trainer.epochs()]
        return run, trainer.model.eval(), val_h[-1] if val_h else 0.0

    def _factor(self, name: str) -> float:
        """What a method's rate is multiplied with; found out where it is not known yet."""
        name = RATE_OF.get(name, name)
        if name in NO_RATE or self._arguments.no_rates:
            return 1.0
        return max(FACTORS, key=lambda factor: self._tried(name, factor))

    def _tried(self, name: str, factor: float) -> float:
        """H on validation images at one rate."""
        forget = self._arguments.forget[0]
        key = {"method": name, "forget": forget, "factor": factor}
        for line in read(self._arguments, "rates"):
            if key.items() <= line.items():
                return float(line["val_h"])
        try:
            val_h = self._trained(name, forget, 0, factor)[2]
        except TrainingDivergedError:
            val_h = 0.0
        self._write("rates", {**key, "val_h": val_h})
        print(f"{name}, {forget}, {factor} times the rate: H {val_h:.3f}", flush=True)
        return val_h

    def _write(self, what: str, line: Line) -> None:
        add_line(share_file(self._arguments.folder, what, self._arguments.share), line)


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Seed, forget set and method of every model; a seed of everything before the next."""
    for seed in range(arguments.seeds):
        for forget in arguments.forget:
            for name in (*ENDS, *arguments.methods) if seed == 0 else arguments.methods:
                yield seed, forget, name


def read(arguments: argparse.Namespace, what: str) -> list[Line]:
    """What all shares have written."""
    return read_lines(sorted(arguments.folder.glob(f"{what}-*.jsonl")))


def figures(line: Line, ends: Sequence[Line]) -> Line:
    """Scores, residuals and distance of a model."""
    outcomes = [
        Outcome(each["method"], each["seed"], attack, Figures(**found), 0.0)
        for each in (*ends, line)
        for attack, found in each["found"].items()
    ]
    standing = standings(outcomes)[line["method"]]
    residuals = {attack: its.mean for attack, its in standing.by_attack.items()}
    others = line["found"]["membership"]["others"]
    return {**line, **others, **residuals, "distance": standing.distance.mean}


def table(arguments: argparse.Namespace) -> Iterator[str]:
    """All figures of each method, then their differences to two of them, pair by pair."""
    lines = [line for line in read(arguments, "models") if line["seed"] < arguments.seeds]
    lines = [line for line in lines if "diverged" not in line]
    ends = [line for line in lines if line["method"] in ENDS]
    found = pd.DataFrame(
        figures(line, [end for end in ends if end["forget"] == line["forget"]]) for line in lines
    )
    found = found.set_index(["forget", "seed"]).reindex(columns=["method", *COLUMNS])
    by_method = {name: its[list(COLUMNS)] for name, its in found.groupby("method", sort=False)}
    yield from rows("", by_method)
    for base in (name for name in (BASELINE, FORGET_ONLY) if name in by_method):
        others = {name: its for name, its in by_method.items() if name not in (base, *ENDS)}
        apart = {name: its - by_method[base] for name, its in others.items()}
        yield from ("", *rows(f"minus {base}", apart))


def rows(title: str, found: dict[str, pd.DataFrame]) -> Iterator[str]:
    """In %, the mean over forget sets and seeds and half of Student's 95 % interval."""
    yield f"| {title} | models | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, its in found.items():
        known = [its[column].dropna().tolist() for column in COLUMNS]
        cells = (with_interval(estimate(each)) if each else "" for each in known)
        yield f"| {name} | {len(its['h'].dropna())} | {' | '.join(cells)} |"


def main() -> None:
    """Records, or prints what has been."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "evidence")
    parser.add_argument("--no-rates", action="store_true", help="the recipe's rate for all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    record_or_show(parser.parse_args(), lambda arguments: Bench(arguments).record(), table)


if __name__ == "__main__":
    main()
