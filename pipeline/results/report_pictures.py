"""Charts of a study's trials, out of Optuna's storage: PNG files for the report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from adu.evaluation.metrics import Scores
from pipeline.studies.attributes import stored_scores
from pipeline.studies.selection import is_dominated
from pipeline.tracking.wanted import short_name

DPI = 110
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"

# fANOVA needs a few trials to tell anything.
MIN_TRIALS_FOR_IMPORTANCE = 4


def study_charts(trials: Sequence[FrozenTrial]) -> dict[str, bytes]:
    """Charts by title; those that the trials are too few for are left out.

    Args:
        trials: All trials of a study.
    """
    scored = [trial for trial in trials if stored_scores(trial.user_attrs)]
    complete = [trial for trial in scored if trial.state == TrialState.COMPLETE]
    charts: dict[str, bytes] = {}
    if complete:
        charts["Pareto front of Mem and For, validation images"] = _draw(_front, complete)
        charts["Parallel coordinates: the options of every trial, and its H"] = _draw(
            _parallel, scored, width=8.5
        )
    if scored:
        charts["Learning curves: H after each epoch"] = _draw(_curves, scored)
    importances = _importances(complete)
    if importances:
        figure, axes = _figure()
        _bars(axes, importances)
        charts["Importance of the options for H (fANOVA)"] = _png(figure)
    return charts


def _last(trial: FrozenTrial) -> Scores:
    scores = stored_scores(trial.user_attrs)
    return scores[max(scores)]


def _front(axes: Axes, trials: Sequence[FrozenTrial]) -> None:
    points = [(100 * _last(trial).mem, 100 * _last(trial).for_) for trial in trials]
    front = sorted(point for point in points if not is_dominated(point, points))
    axes.scatter(
        [mem for mem, _ in points], [for_ for _, for_ in points], s=30, color=GREY, label="trial"
    )
    axes.plot(
        [mem for mem, _ in front], [for_ for _, for_ in front], "s-", color=ORANGE, label="front"
    )
    axes.set(xlabel="Mem, %", ylabel="For, %", xlim=(0, 103), ylim=(0, 103))
    axes.legend(fontsize=8, loc="lower left")


def _curves(axes: Axes, trials: Sequence[FrozenTrial]) -> None:
    best = max(trials, key=lambda trial: (trial.state == TrialState.COMPLETE, _last(trial).h))
    for trial in trials:
        scores = stored_scores(trial.user_attrs)
        epochs = sorted(scores)
        stopped = trial.state == TrialState.PRUNED
        axes.plot(
            epochs,
            [100 * scores[epoch].h for epoch in epochs],
            linestyle=":" if stopped else "-",
            marker="x" if stopped else "o",
            markevery=[-1],
            color=ORANGE if trial is best else BLUE,
            linewidth=2.5 if trial is best else 1.0,
            zorder=3 if trial is best else 2,
            alpha=1.0 if trial is best else 0.6,
        )
    axes.plot([], [], "-o", color=ORANGE, linewidth=2.5, label=f"best, trial {best.number}")
    axes.plot([], [], "-o", color=BLUE, label="complete")
    axes.plot([], [], ":x", color=BLUE, label="stopped early")
    axes.set(xlabel="epoch", ylabel="validation H, %", ylim=(-3, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="best", framealpha=0.9)


def _parallel(axes: Axes, trials: Sequence[FrozenTrial]) -> None:
    """Each option an upright line, each trial a path across them, ending at its H."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    scales = [_scale(name, trials) for name in names]
    ordered = sorted(trials, key=lambda trial: _last(trial).h)
    for rank, trial in enumerate(ordered):
        heights = [
            scale[trial.params[name]] if name in trial.params else np.nan
            for name, scale in zip(names, scales, strict=True)
        ]
        is_best = rank == len(ordered) - 1
        axes.plot(
            range(len(names) + 1),
            [*heights, _last(trial).h],
            color=ORANGE if is_best else BLUE,
            linewidth=2.5 if is_best else 1.0,
            alpha=1.0 if is_best else 0.25 + 0.5 * rank / len(ordered),
            marker=".",
        )
    for place, scale in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.6)
        values = sorted(scale, key=scale.__getitem__)
        for value in {values[0], values[-1]} if len(values) > 4 else values:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.text(place + 0.03, scale[value], text, fontsize=7, va="center")
    axes.axvline(len(names), color="black", linewidth=0.6)
    axes.set_xticks(range(len(names) + 1), [*map(short_name, names), "H"], fontsize=8)
    axes.set(ylim=(-0.05, 1.05), xlim=(-0.1, len(names) + 0.25))
    axes.set_yticks([])
    axes.plot([], [], color=ORANGE, linewidth=2.5, label="best")
    axes.plot([], [], color=BLUE, linewidth=1.0, label="others, the better the darker")
    axes.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    for height in (0, 0.5, 1):
        axes.text(len(names) + 0.03, height, f"{100 * height:.0f} %", fontsize=7, va="center")


def _scale(name: str, trials: Sequence[FrozenTrial]) -> dict[object, float]:
    """Where each value of an option stands on its line, from 0 to 1."""
    having = [trial for trial in trials if name in trial.params]
    distribution = having[0].distributions[name]
    values = list(dict.fromkeys(trial.params[name] for trial in having))
    if isinstance(distribution, CategoricalDistribution):
        places = np.linspace(0, 1, len(distribution.choices)).tolist()
        return dict(zip(distribution.choices, places, strict=True))
    low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
    if distribution.log:  # type: ignore[attr-defined]
        return {v: float(np.log(v / low) / np.log(high / low)) for v in values}
    return {v: (v - low) / (high - low) for v in values}


def _importances(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Of the options that every complete trial has, for H."""
    if len(trials) < MIN_TRIALS_FOR_IMPORTANCE or len({_last(t).h for t in trials}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=_last(trial).h
            )
            for trial in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(seed=0)
            )
        except (RuntimeError, ValueError):
            # No option was varied.
            return {}


def _bars(axes: Axes, importances: dict[str, float]) -> None:
    names = list(reversed(importances))
    bars = axes.barh(
        [short_name(name) for name in names],
        [100 * importances[name] for name in names],
        color=BLUE,
        hatch="//",
        edgecolor="white",
    )
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set(xlabel="share of the variance of H, %", xlim=(0, 112))


def _draw(
    function: Callable[[Axes, Sequence[FrozenTrial]], None],
    trials: Sequence[FrozenTrial],
    width: float = 6.0,
) -> bytes:
    figure, axes = _figure(width)
    function(axes, trials)
    return _png(figure)


def _figure(width: float = 6.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
