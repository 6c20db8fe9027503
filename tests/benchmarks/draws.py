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
from statistics import mean
from typing import Any

from adu.evidence.verdict import estimate
from pipeline.names import forget_name
from pipeline.results.evidence import with_interval

STAGES = ("zero_shot", "baseline", "paper", "paper_defaults", "best")

# By draw, forget set and stage: Mem, For and H of every seed.
Figures = dict[tuple[str, str, str], list[tuple[float, float, float]]]


def read_figures(folders: Sequence[Path]) -> Figures:
    """The final runs of all draws."""
    found: Figures = {}
    for folder in folders:
        with (folder / "figures.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                scores = float(row["mem"]), float(row["for"]), float(row["h"])
                found.setdefault((folder.name, row["forget"], row["stage"]), []).append(scores)
    return found


def read_taken(folders: Sequence[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The model to take, by draw and forget set."""
    return {
        (folder.name, forget_name(study["forget"])): study["best"]["handed_out"]
        for folder in folders
        for study in json.loads((folder / "summary.json").read_text())["studies"]
        if study["best"] and study["best"]["handed_out"]
    }


def table(folders: Sequence[Path]) -> Iterator[str]:
    """Lines of a Markdown table."""
    figures, taken = read_figures(folders), read_taken(folders)
    draws = [folder.name for folder in folders]
    names = sorted({forget for _, forget, _ in figures})
    stages = [stage for stage in STAGES if any(stage == key[2] for key in figures)]
    yield "| " + " | ".join(["forget", *stages, "the model to take"]) + " |"
    yield "|" + "---|" * (len(stages) + 2)
    for name in names:
        models = [_percent(taken[d, name]["test"]["h"]) for d in draws if (d, name) in taken]
        cells = [_cell(figures, draws, name, stage) for stage in stages]
        yield "| " + " | ".join([name, *cells, ", ".join(models)]) + " |"
    # A draw that has not ended has no mean.
    whole = [draw for draw in draws if all((draw, name) in taken for name in names)]
    if not names or not whole:
        return
    means = [_of_draws(figures, whole, names, stage) for stage in stages]
    models_h = [mean(taken[draw, name]["test"]["h"] for name in names) for draw in whole]
    cells = [*means, f"{', '.join(map(_percent, models_h))}: {_interval(models_h)}"]
    yield "| " + " | ".join(["mean of each draw: of all", *cells]) + " |"


def _cell(figures: Figures, draws: Sequence[str], forget: str, stage: str) -> str:
    runs = [run for draw in draws for run in figures.get((draw, forget, stage), [])]
    if not runs:
        return ""
    mem, for_, h = zip(*runs, strict=True)
    # The untouched model is the same in all draws.
    last = _percent(h[0]) if stage == "zero_shot" else _interval(h)
    return f"{_percent(mean(mem))} / {_percent(mean(for_))} / {last}"


def _of_draws(
    figures: Figures, draws: Sequence[str], forget_sets: Sequence[str], stage: str
) -> str:
    """H averaged over the forget sets: of each draw, and of each of all runs with its interval."""
    by_seed, by_draw = [], []
    for draw in draws:
        runs = [figures.get((draw, forget, stage), []) for forget in forget_sets]
        means = [mean(run[2] for run in seeds) for seeds in zip(*runs, strict=False)]
        if means:
            by_draw.append(_percent(mean(means)))
            by_seed += means
    if not by_draw:
        return ""
    last = by_draw[0] if stage == "zero_shot" else _interval(by_seed)
    return f"{', '.join(by_draw)}: {last}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(shares: Sequence[float]) -> str:
    return with_interval(estimate(shares), digits=1)


def main() -> None:
    """Prints the table."""
    description, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of searches")
    print("\n".join(table(parser.parse_args().folders)))


if __name__ == "__main__":
    main()
