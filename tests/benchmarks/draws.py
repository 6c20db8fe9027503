"""Searches on several draws of the same images, side by side: each draw's figures and their mean.

    python -m tests.benchmarks.draws results/pacs-draw0 results/pacs-draw1 ...

A row a forget set, a column a stage of the final runs; Mem / For / H in %, H with half of Student's
95 % interval over all runs. Runs of a draw share their shots, so that it is rather too narrow. The
model to take is one a draw.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtrit

STAGES = ("zero_shot", "baseline", "paper", "paper_defaults", "best")
CONFIDENCE = 0.95

# By draw, forget set and stage: Mem, For and H of every seed, in %.
Figures = dict[tuple[str, str, str], list[tuple[float, float, float]]]


def read_figures(folders: Sequence[Path]) -> Figures:
    """The final runs of all draws."""
    found: Figures = {}
    for folder in folders:
        with (folder / "figures.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                scores = 100 * float(row["mem"]), 100 * float(row["for"]), 100 * float(row["h"])
                found.setdefault((folder.name, row["forget"], row["stage"]), []).append(scores)
    return found


def read_taken(folders: Sequence[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The model to take, by draw and forget set."""
    return {
        (folder.name, "+".join(study["forget"])): study["best"]["handed_out"]
        for folder in folders
        for study in json.loads((folder / "summary.json").read_text())["studies"]
        if study["best"] and study["best"]["handed_out"]
    }


def half_interval(values: Sequence[float]) -> float | None:
    """Half of Student's interval of a mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / n**0.5


def with_interval(values: Sequence[float]) -> str:
    """A mean and half of its interval."""
    half = half_interval(values)
    return f"{mean(values):.1f}" if half is None else f"{mean(values):.1f} ± {half:.1f}"


def table(folders: Sequence[Path]) -> Iterator[str]:
    """Lines of a Markdown table."""
    figures, taken = read_figures(folders), read_taken(folders)
    draws = [folder.name for folder in folders]
    names = sorted({forget for _, forget, _ in figures})
    stages = [stage for stage in STAGES if any(stage == key[2] for key in figures)]
    yield "| " + " | ".join(["forget", *stages, "the model to take"]) + " |"
    yield "|" + "---|" * (len(stages) + 2)
    for name in names:
        models = [f"{100 * taken[d, name]['test']['h']:.1f}" for d in draws if (d, name) in taken]
        cells = [_cell(figures, draws, name, stage) for stage in stages]
        yield "| " + " | ".join([name, *cells, ", ".join(models)]) + " |"
    # A draw that has not ended has no mean.
    whole = [draw for draw in draws if all((draw, name) in taken for name in names)]
    if not names or not whole:
        return
    means = [_of_draws(figures, whole, names, stage) for stage in stages]
    models_h = [mean(100 * taken[draw, name]["test"]["h"] for name in names) for draw in whole]
    cells = [*means, f"{', '.join(f'{h:.1f}' for h in models_h)}: {with_interval(models_h)}"]
    yield "| " + " | ".join(["mean of each draw: of all", *cells]) + " |"


def _cell(figures: Figures, draws: Sequence[str], forget: str, stage: str) -> str:
    runs = [run for draw in draws for run in figures.get((draw, forget, stage), [])]
    if not runs:
        return ""
    mem, for_, h = zip(*runs, strict=True)
    # The untouched model is the same in all draws.
    last = f"{h[0]:.1f}" if stage == "zero_shot" else with_interval(h)
    return f"{mean(mem):.1f} / {mean(for_):.1f} / {last}"


def _of_draws(
    figures: Figures, draws: Sequence[str], forget_sets: Sequence[str], stage: str
) -> str:
    """H averaged over the forget sets: of each draw, and of each of all runs with its interval."""
    by_seed, by_draw = [], []
    for draw in draws:
        runs = [figures.get((draw, forget, stage), []) for forget in forget_sets]
        means = [mean(run[2] for run in seeds) for seeds in zip(*runs, strict=False)]
        if means:
            by_draw.append(f"{mean(means):.1f}")
            by_seed += means
    if not by_draw:
        return ""
    last = by_draw[0] if stage == "zero_shot" else with_interval(by_seed)
    return f"{', '.join(by_draw)}: {last}"


def main() -> None:
    """Prints the table."""
    description, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of searches")
    print("\n".join(table(parser.parse_args().folders)))


if __name__ == "__main__":
    main()
