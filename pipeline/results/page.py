"""What the report says of each study, in figures; out of the outcomes of its final runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from optuna.trial import FrozenTrial

from pipeline.results.summary import judgement
from pipeline.studies.records import METHOD_LABELS, STAGES, stage_label
from pipeline.tracking.fixed import SeedRun

SCORES = ("mem", "for", "h")


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, in %.

    Attributes:
        mean: None if nothing was measured.
        spread: The standard deviation; None for one seed.
    """

    mean: float | None
    spread: float | None = None

    @property
    def text(self) -> str:
        """The mean as a person reads it."""
        return "–" if self.mean is None else f"{self.mean:.1f}"

    @property
    def spread_text(self) -> str:
        """The deviation as a person reads it; empty for one seed."""
        return "" if self.spread is None else f"± {self.spread:.1f}"


def figure(values: Sequence[float]) -> Figure:
    """A figure out of shares between 0 and 1, one a seed."""
    percent = [100 * value for value in values]
    if not percent:
        return Figure(None)
    return Figure(mean(percent), stdev(percent) if len(percent) > 1 else None)


@dataclass(frozen=True)
class StageRow:
    """A row of the table of results: a model on test images.

    Attributes:
        stage: A key of `STAGES`.
        label: As a person reads it.
        scores: Mem, For and H.
        domain_accuracy: How often a linear probe tells the domain.
        n_seeds: Runs that came to their end.
    """

    stage: str
    label: str
    scores: dict[str, Figure]
    domain_accuracy: Figure
    n_seeds: int


def stage_rows(finals: Sequence[SeedRun]) -> list[StageRow]:
    """The rows of a study, in the order of `STAGES`."""
    rows = []
    for stage in STAGES:
        runs = [run for run in finals if run.stage == stage and run.outcome is not None]
        if not runs:
            continue
        outcomes = [run.outcome for run in runs if run.outcome is not None]
        method = runs[0].config.method.name
        tests = [outcome.test.scores.as_dict() for outcome in outcomes]
        rows.append(
            StageRow(
                stage,
                stage_label(stage, METHOD_LABELS.get(method, method)),
                {name: figure([test[name] for test in tests]) for name in SCORES},
                figure([outcome.domain_accuracy for outcome in outcomes]),
                len(outcomes),
            )
        )
    return rows


def gains_over_defaults(finals: Sequence[SeedRun]) -> list[float]:
    """Points of test H by which the search beat the paper's defaults, seed by seed."""
    h = {
        (run.stage, run.config.train.seed): run.outcome.test.scores.h
        for run in finals
        if run.outcome is not None
    }
    return [
        100 * (value - h["paper_defaults", seed])
        for (stage, seed), value in h.items()
        if stage == "best" and ("paper_defaults", seed) in h
    ]


def answer(name: str, rows: Sequence[StageRow], gains: Sequence[float]) -> list[str]:
    """What was forgotten, at what cost and how sure that is, in sentences."""
    by_stage = {row.stage: row for row in rows}
    if not {"best", "zero_shot"} <= by_stage.keys():
        return [f"There is no tested model that has forgotten {name} yet."]
    best, before = by_stage["best"].scores, by_stage["zero_shot"].scores
    lines = [
        f"Forgotten: {best['for'].text} % of the test images of {name} are no longer recognised "
        f"({before['for'].text} % before).",
        f"Cost: of the images to keep, {best['mem'].text} % are recognised "
        f"({before['mem'].text} % before). H is {best['h'].text} % {best['h'].spread_text}".rstrip()
        + f", and was {before['h'].text} %.",
    ]
    return [*lines, _sure(gains)]


def sureness(gains: Sequence[float]) -> str:
    """Whether the search beat the paper's defaults, in a word or two; empty if nobody knows."""
    if not gains:
        return ""
    if mean(gains) <= 0:
        return "no gain"
    return "within spread" if len(gains) > 1 and mean(gains) < stdev(gains) else "yes"


def overall(studies: Sequence[tuple[str, Figure, str]]) -> list[str]:
    """The answer of several studies: how many, how good, which best and worst.

    Args:
        studies: Name, H of the best configuration on test images, and `sureness`.
    """
    known = [(h.mean, name, sure) for name, h, sure in studies if h.mean is not None]
    if not known:
        return [f"{len(studies)} forget sets, none with a tested model yet."]
    sure = [word for _, _, word in known]
    (best, best_name, _), (worst, worst_name, _) = max(known), min(known)
    return [
        f"{len(known)} of {len(studies)} forget sets have a tested model; their mean H is "
        f"{mean(h for h, _, _ in known):.1f} %.",
        f"Best forgotten: {best_name} (H {best:.1f} %); worst: {worst_name} (H {worst:.1f} %).",
        f"The search beat the paper's defaults on {sure.count('yes')}, by less than seeds differ "
        f"on {sure.count('within spread')}, and not at all on {sure.count('no gain')}. Which model "
        "to take, and how to load it, stands with each set below.",
    ]


def _sure(gains: Sequence[float]) -> str:
    if not gains:
        return "How sure: there is nothing to compare with the paper's defaults."
    spread = f" ± {stdev(gains):.1f}" if len(gains) > 1 else ""
    seeds = f"{len(gains)} seed{'s' * (len(gains) > 1)}"
    return (
        f"How sure: the search {judgement(gains)}, {mean(gains):+.1f}{spread} points of H on test "
        f"images, seed by seed ({seeds})."
    )


def accuracy_rows(
    finals: Sequence[SeedRun], touched: Sequence[str]
) -> list[tuple[str, Figure, Figure]]:
    """Domain, accuracy before and after; those of which something is forgotten say so."""
    before = _accuracies(finals, "zero_shot")
    after = _accuracies(finals, "best")
    return [
        (
            f"{domain} (forget)" if domain in touched else domain,
            figure(before[domain]),
            figure(after[domain]),
        )
        for domain in before
        if domain in after
    ]


def _accuracies(finals: Sequence[SeedRun], stage: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in finals:
        if run.stage == stage and run.outcome is not None:
            for domain, value in run.outcome.test.scores.accuracy_by_domain.items():
                found.setdefault(domain, []).append(value)
    return found


def best_options(finals: Sequence[SeedRun], searched: Sequence[str]) -> dict[str, str]:
    """The chosen values of what was searched, by option path."""
    best = next((run.config for run in finals if run.stage == "best"), None)
    if best is None:
        return {}
    values: Mapping[str, Any] = best.model_dump(mode="json", by_alias=True)
    return {path: _short(_at(values, path)) for path in searched}


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _short(value: Any) -> str:
    """A number with as many digits as a person reads; anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """How many trials have come to which end."""
    states = [trial.state.name for trial in trials]
    words = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}
    return {word: states.count(state) for state, word in words.items()}
