"""Replays searches on a recorded table: regret against epochs, for samplers, races and transfer.

    python -m tests.benchmarks.replay [--seeds 50] [--rule "GP, all, race of 2"]

A search sees validation figures alone. Its regret is what the mean test H over the recorded seeds
of the configuration that it chose is below that of the best recorded one. A proposal of a sampler
is taken for the nearest configuration that was recorded and not tried yet. Each replay has random
numbers and a training seed of its own. Prints a table; a picture and the figures (JSON) go beside
each other to results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution
from rich.console import Console
from rich.table import Table

from adu.training.config import RunConfig
from pipeline.studies.samplers import make_sampler
from pipeline.studies.space import Space, suggest
from tests.benchmarks.signal_table import TABLE, demo_config
from tests.benchmarks.transfer import Siblings, coordinates, most_promising

RESULTS = Path("results").absolute()
TRIALS = (2, 4, 7, 10, 15, 20, 30)
CONFIDENCE_Z = 1.96

Signal = Literal["val", "quick"]
Transfer = Literal["none", "siblings", "portfolio", "hurdles", "residual"]


@dataclass(frozen=True)
class Rule:
    """A way to search.

    Attributes:
        sampler: Of the project's.
        signal: Whether all validation images are looked at, or a few.
        race: So many of the best are run again with further seeds.
        transfer: What is taken from other forget sets: their bests are tried first (siblings), or
            what is best over all of them (portfolio); or their bests are tried first and stop all
            that is below them at a rung (hurdles, as in RUSH); or a Gaussian process learns what
            theirs leaves open (residual, in the place of a sampler).
    """

    sampler: str = "tpe"
    signal: Signal = "val"
    race: int = 2
    transfer: Transfer = "none"


RULES = {
    "random, a few images": Rule("random", "quick", 1),
    "random, all images": Rule("random", "val", 1),
    "random, all, race of 2": Rule("random", "val", 2),
    "random, all, race of 3": Rule("random", "val", 3),
    "TPE, a few images": Rule("tpe", "quick", 1),
    "TPE, all, race of 2": Rule("tpe", "val", 2),
    "GP, all, race of 2": Rule("gp", "val", 2),
    "TPE, race of 2, siblings": Rule("tpe", "val", 2, "siblings"),
    "TPE, race of 2, portfolio": Rule("tpe", "val", 2, "portfolio"),
    "TPE, race of 2, hurdles": Rule("tpe", "val", 2, "hurdles"),
    "residual GP, race of 2": Rule("gp", "val", 2, "residual"),
}


class Recorded:
    """A table of runs; figures are by forget set, configuration, seed and epoch.

    Args:
        file: What `signal_table pack` has written.
    """

    def __init__(self, file: Path) -> None:
        rows = pq.read_table(file).to_pandas()
        self.forget_sets = sorted(rows["forget"].unique())
        numbers, seeds = sorted(rows["number"].unique()), sorted(rows["seed"].unique())
        self.epochs = int(rows["epoch"].max())
        shape = (len(self.forget_sets), len(numbers), len(seeds), self.epochs)
        by_number = rows.drop_duplicates("number").set_index("number")["params"]
        self.params = [json.loads(by_number[number]) for number in numbers]
        at = (
            rows["forget"].map(self.forget_sets.index),
            rows["number"].map(numbers.index),
            rows["seed"].map(seeds.index),
            rows["epoch"] - 1,
        )
        self.h: dict[str, np.ndarray] = {}
        for kind in ("val", "quick", "test"):
            # What has diverged is worth nothing.
            self.h[kind] = np.zeros(shape)
            self.h[kind][at] = rows[f"{kind}_h"]
        self.n_seeds = len(seeds)

    @property
    def truth(self) -> np.ndarray:
        """Mean test H after the last epoch, by forget set and configuration."""
        return self.h["test"][..., -1].mean(axis=2)


class Replay:
    """One search for one forget set.

    Args:
        table: The table.
        rule: How it searches.
        forget: Number of the forget set.
        seed: Of its random numbers, and of which training seed is seen first.
        space: What is searched.
        base: The run apart from that.
        grace_epochs: Before a trial may be stopped.
        factor: Of the trials at a rung, the best 1/factor go on.
    """

    def __init__(
        self,
        table: Recorded,
        rule: Rule,
        forget: int,
        seed: int,
        space: Space,
        base: RunConfig,
        grace_epochs: int,
        factor: float,
    ) -> None:
        self._table, self._rule, self._forget = table, rule, forget
        self._seed, self._space, self._base = seed, space, base
        self._grace, self._factor = grace_epochs, factor
        order = np.random.default_rng(seed).permutation(table.n_seeds)
        self._first_seed, self._further_seeds = int(order[0]), [int(s) for s in order[1:]]
        self._left = list(range(len(table.params)))
        others = [other for other in range(len(table.forget_sets)) if other != forget]
        self._siblings = Siblings(table.h["val"][others, :, self._first_seed], seed)
        firsts = {"portfolio": Siblings.portfolio, "siblings": Siblings.bests}
        firsts["hurdles"] = Siblings.bests
        transferred = firsts.get(rule.transfer)
        self._hurdlers = transferred(self._siblings) if transferred else []
        self._first = [0, *self._hurdlers]
        self._points = coordinates(space, table.params)
        self._prior = self._siblings.prior(self._points) if rule.transfer == "residual" else None
        self._tried: dict[int, float] = {}
        self._hurdle = -1.0
        self._rung: list[float] = []
        self._whole: dict[int, float] = {}
        self._study = optuna.create_study(direction="maximize")
        self.epochs = 0

    def trial(self) -> None:
        """Runs one more trial."""
        number = self._propose()
        self._left.remove(number)
        curve = self._h[number, self._first_seed]
        n_epochs = self._epochs_of(curve)
        self.epochs += n_epochs
        self._tried[number] = float(curve[n_epochs - 1])
        if self._rule.transfer == "hurdles" and number in self._hurdlers:
            self._hurdle = max(self._hurdle, float(curve[self._grace - 1]))
        if n_epochs == self._table.epochs:
            self._whole[number] = float(curve[-1])
        self._study.add_trial(
            optuna.trial.create_trial(
                params=self._table.params[number],
                distributions=self._distributions(number),
                value=float(curve[n_epochs - 1]),
            )
        )

    def choose(self) -> tuple[int, int]:
        """The configuration that would be handed out now, and the epochs spent until then."""
        ranked = sorted(self._whole, key=self._whole.__getitem__, reverse=True)
        left = ranked[: self._rule.race]
        if self._rule.race > 1 and 0 in ranked and 0 not in left:
            left[-1] = 0
        spent = self.epochs
        looks = {number: [self._whole[number]] for number in left}
        for seed in self._further_seeds if self._rule.race > 1 else ():
            for number in left:
                looks[number].append(float(self._h[number, seed, -1]))
                spent += self._table.epochs
            left.sort(key=lambda number: -np.mean(looks[number]))
            if len(left) <= 2:
                break
            left.pop()
        best = max(left, key=lambda number: np.mean(looks[number]))
        return best, spent

    @property
    def _h(self) -> np.ndarray:
        return self._table.h[self._rule.signal][self._forget]

    def _epochs_of(self, curve: np.ndarray) -> int:
        """How far a trial is let run: ASHA with one rung, as of Ray's; the defaults all the way."""
        if self._grace >= self._table.epochs:
            return self._table.epochs
        value = float(curve[self._grace - 1])
        cutoff = np.percentile(self._rung, 100 * (1 - 1 / self._factor)) if self._rung else -1.0
        cutoff = max(cutoff, self._hurdle)
        self._rung.append(value)
        is_stopped = value < cutoff and len(self._left) < len(self._table.params) - 1
        return self._grace if is_stopped else self._table.epochs

    def _propose(self) -> int:
        while self._first:
            if (number := self._first.pop(0)) in self._left:
                return number
        if self._prior is not None:
            tried, h = list(self._tried), list(self._tried.values())
            return most_promising(self._points, self._prior, tried, h, self._left)
        conditional = any(parameter.when for parameter in self._space.values())
        n_told = len(self._study.trials)
        self._study.sampler = make_sampler(
            self._rule.sampler, 1000 * self._seed + n_told, 4, conditional
        )
        trial = self._study.ask()
        wanted = suggest(trial, self._space, self._base)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        params = self._table.params
        return min(self._left, key=lambda number: self._distance(params[number], wanted))

    def _distance(self, params: dict[str, Any], wanted: dict[str, Any]) -> float:
        return sum(
            _apart(parameter, params.get(path), wanted.get(path))
            for path, parameter in self._space.items()
        )

    def _distributions(self, number: int) -> dict[str, BaseDistribution]:
        fixed = optuna.trial.FixedTrial(self._table.params[number])
        suggest(fixed, self._space, self._base)
        return fixed.distributions


def _apart(parameter: Any, a: Any, b: Any) -> float:
    """How far two values are from each other, from 0 to 1."""
    if parameter.choices is not None or a is None or b is None:
        return float(a != b)
    scale = np.log if parameter.log else float
    width = scale(parameter.high) - scale(parameter.low)
    return float(abs(scale(a) - scale(b)) / width)


def curve(
    table: Recorded, rule: Rule, seed: int, trials: Sequence[int], options: dict[str, Any]
) -> list[tuple[float, float]]:
    """Epochs spent and regret in points of H after so many trials, averaged over forget sets."""
    found = np.zeros((len(table.forget_sets), len(trials), 2))
    for forget in range(len(table.forget_sets)):
        replay = Replay(table, rule, forget, seed, **options)
        truth, done = table.truth[forget], 0
        for place, n in enumerate(trials):
            for _ in range(n - done):
                replay.trial()
            done = n
            best, epochs = replay.choose()
            found[forget, place] = epochs, 100 * (truth.max() - truth[best])
    return [tuple(row) for row in found.mean(axis=0).tolist()]


def replay_all(
    table: Recorded, rules: dict[str, Rule], n_seeds: int, options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """For each rule: epochs and regret by seed and number of trials, (seeds, trials, 2)."""
    trials = [n for n in TRIALS if n <= len(table.params)]
    return {
        name: np.array([curve(table, rule, seed, trials, options) for seed in range(n_seeds)])
        for name, rule in rules.items()
    }


def draw(found: dict[str, np.ndarray], file: Path) -> None:
    """Regret against epochs, with the 95 % band of the mean."""
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in found.items():
        epochs, regret = values[..., 0].mean(axis=0), values[..., 1]
        (line,) = axes.plot(epochs, regret.mean(axis=0), marker="o", markersize=3, label=name)
        low, high = _band(regret)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="epochs a forget set", ylabel="regret, points of test H", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file)


def shown(found: dict[str, np.ndarray]) -> Table:
    """Regret and its 95 % band after so many trials, epochs in brackets."""
    n_columns = next(iter(found.values())).shape[1]
    table = Table(title="regret, points of test H (epochs a forget set)", title_justify="left")
    table.add_column("rule")
    for n in TRIALS[:n_columns]:
        table.add_column(f"{n} trials", justify="right")
    for name, values in found.items():
        epochs, regret = values[..., 0].mean(axis=0), values[..., 1]
        half = regret.mean(axis=0) - _band(regret)[0]
        cells = zip(regret.mean(axis=0), half, epochs, strict=True)
        table.add_row(name, *(f"{mean:.1f} ± {band:.1f} ({n:.0f})" for mean, band, n in cells))
    return table


def _band(regret: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = regret.mean(axis=0)
    half = CONFIDENCE_Z * regret.std(axis=0, ddof=1) / len(regret) ** 0.5
    return mean - half, mean + half


def demo_options() -> dict[str, Any]:
    """The space and early stopping of the demo."""
    config = demo_config()
    base = RunConfig(forget=("sketch",), method=config.method, train=config.train)
    search = config.search
    stopping = {"grace_epochs": search.grace_epochs, "factor": search.reduction_factor}
    return {"space": config.space, "base": base, **stopping}


def main() -> None:
    """Replays the rules."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--rule", nargs="+", choices=list(RULES), help="unset: all")
    arguments = parser.parse_args()
    if not arguments.table.exists():
        record = "python -m tests.benchmarks.signal_table record, then pack"
        parser.error(f"{arguments.table}: is not there ({record})")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started_at = time.monotonic()
    rules = {name: RULES[name] for name in arguments.rule or RULES}
    found = replay_all(Recorded(arguments.table), rules, arguments.seeds, demo_options())
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "bench-sampler.png"
    file.with_suffix(".json").write_text(json.dumps({k: v.tolist() for k, v in found.items()}))
    draw(found, file)
    console = Console(width=160)
    console.print(shown(found))
    console.print(f"{time.monotonic() - started_at:.0f} s, picture in {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
