"""Which recipe of ADU is better: each with a small search of its own, then with fresh seeds.

    python -m tests.benchmarks.recipes record [--share 1/2]
    python -m tests.benchmarks.recipes table

On the demo, or with --manifest, --backbone and --space on other images. A recipe's candidates are
its own weights and --candidates - 1 drawn ones, the same for every forget set. Chosen is the
highest H on validation images, with seed 0, that keeps 80 % of the untouched model's Mem (where
none does, the highest Mem), and tested with seeds from 1 on. Epochs and crops are those of --space,
batches too where a recipe leaves them open. Trains with the library alone, on one thread. A run is
a line of a file as soon as it is through, and is not made again if it is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from adu.context import Context
from adu.evaluation.evaluate import evaluate_images
from adu.evidence.verdict import estimate
from adu.methods.recipes import RECIPES
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig
from adu.training.trainer import Trainer, TrainingDivergedError
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

# What rates are drawn between, as factors on the recipe's: the paper's is meant for 50 epochs.
RATES = {"paper": (1, 16), "authors": (1, 16), "stable": (0.25, 4)}
MIN_MEM = 0.8
BASE = "stable"
# Of --space, whatever a recipe says.
SHARED = ("epochs", "crop_scale_min", "precision")


def candidates(recipe: str, space: Line, n: int, n_blocks: int) -> Iterator[Line]:
    """Options of the runs that a recipe's search makes, its own first."""
    its = RECIPES[recipe].train
    train = {**space, **its, **{name: space[name] for name in SHARED if name in space}}
    yield {"method": {"name": "adu", "recipe": recipe}, "train": train}
    rng = np.random.default_rng(0)
    for _ in range(n - 1):
        gamma, weight, rate = rng.random(3)
        low, high = RATES[recipe]
        method = {
            "gamma": round(0.1 * 300**gamma, 3),
            "lambda": round(0.3 * 100**weight, 3),
            "n_ctx": int(rng.choice([8, 16, 32])),
            "instapg_layer": int(rng.integers(1, n_blocks)),
        }
        rated = {**train, "lr": round(its["lr"] * low * (high / low) ** rate, 6)}
        yield {"method": {"name": "adu", "recipe": recipe, **method}, "train": rated}


class Bench:
    """Trains on one data set, and keeps a line of each run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._train = training(arguments)
        self._context = load_data(arguments)
        # The same shots. What is tested need not be validated.
        self._tested = load_data(arguments, val_shots=1)

    def record(self) -> None:
        """Searches and tests what has not been."""
        pairs = [(recipe, forget) for forget in self._arguments.forget for recipe in RECIPES]
        for recipe, forget in own_share(pairs, self._arguments.share):
            known = [
                line
                for line in read(self._arguments)
                if (line["recipe"], line["forget"]) == (recipe, forget)
            ]
            n_blocks = min(12, self._context.backbone.tower.n_blocks) // 2 + 1
            tried = list(candidates(recipe, self._train, self._arguments.candidates, n_blocks))
            for number, options in enumerate(tried):
                if not any(line["candidate"] == number for line in known):
                    known.append(self._run(recipe, forget, number, options, 0))
            best = max((line for line in known if line["seed"] == 0), key=self._merit)
            for seed in range(1, self._arguments.seeds + 1):
                if not any(line["seed"] == seed for line in known):
                    self._run(recipe, forget, best["candidate"], tried[best["candidate"]], seed)

    def _run(self, recipe: str, forget: str, number: int, options: Line, seed: int) -> Line:
        """Trains; with seed 0 validates, else tests."""
        values = {**options, "forget": (forget,), "train": {**options["train"], "seed": seed}}
        run = RunConfig.model_validate(values)
        start_s = time.process_time()
        trainer = Trainer(run, self._context if seed == 0 else self._tested, deciding=())
        try:
            *_, last = trainer.epochs()
            scores = last.val if seed == 0 else trainer.test().scores
            figures = scores.as_dict()
        except TrainingDivergedError:
            figures = {"h": 0.0, "mem": 0.0, "for": 0.0}
        line = {"recipe": recipe, "forget": forget, "candidate": number, "seed": seed, **figures}
        line |= {"options": options, "cpu_s": round(time.process_time() - start_s, 1)}
        add_line(share_file(self._arguments.folder, "runs", self._arguments.share), line)
        print(recipe, forget, number, seed, f"H {line['h']:.3f}, {line['cpu_s']} s", flush=True)
        return line

    def _merit(self, line: Line) -> tuple[bool, float]:
        keeps = line["mem"] >= MIN_MEM * untouched(self._context, line["forget"])
        return keeps, line["h"] if keeps else line["mem"]


def untouched(context: Context, forget: str) -> float:
    """Mem of the untouched model on validation images."""
    run = RunConfig(forget=(forget,), method=ZeroShotConfig())
    model = Trainer(run, context).model.eval()
    return evaluate_images(model, context, context.val, (forget,)).mem


def read(arguments: argparse.Namespace) -> list[Line]:
    """What all shares have written."""
    return read_lines(sorted(arguments.folder.glob("runs-*.jsonl")))


def table(arguments: argparse.Namespace) -> Iterator[str]:
    """Test figures of each recipe's choice, in %, with half of Student's 95 % interval."""
    runs = pd.DataFrame(line for line in read(arguments) if line["seed"] > 0)
    runs = runs.set_index(["forget", "seed"])
    forgets = sorted(set(runs.index.get_level_values("forget")))
    yield f"| recipe | runs | {' | '.join(forgets)} | H | Mem | For | H - {BASE}'s |"
    yield "|---" * (len(forgets) + 6) + "|"
    base = runs[runs["recipe"] == BASE]
    for recipe in RECIPES:
        its = runs[runs["recipe"] == recipe]
        by_forget = dict(its["h"].groupby("forget").agg(list))
        cells = [with_interval(by_forget.get(forget, [])) for forget in forgets]
        cells += [with_interval(its[name].tolist()) for name in ("h", "mem", "for")]
        apart = (its["h"] - base["h"]).dropna().tolist()
        cells.append("" if recipe == BASE else with_interval(apart))
        yield f"| {recipe} | {len(its)} | {' | '.join(cells)} |"


def with_interval(values: list[float]) -> str:
    """Their mean in % and half of the interval; nothing where there are too few."""
    if len(values) < 2:
        return ""
    found = estimate([100 * value for value in values])
    return f"{found.mean:.1f} ± {found.half_width:.1f}"


def main() -> None:
    """Records, or prints what has been."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "recipes")
    parser.add_argument("--candidates", type=int, default=8, help="of each recipe's search")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    record_or_show(parser.parse_args(), lambda arguments: Bench(arguments).record(), table)


if __name__ == "__main__":
    main()
