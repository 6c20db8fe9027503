"""The pictures of a study, as PNG files: readable on paper and without colour."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE

from adu.data.forget import forget_domains, forget_mask
from adu.evaluation.attention import SampleAttention
from adu.evaluation.evaluate import TestResult
from adu.evaluation.metrics import Scores, harmonic_mean
from pipeline.executors.outcome_file import TestOutcome
from pipeline.studies.records import StudyRecord

DPI = 110
# Colours that stay apart for colour-blind eyes (Okabe and Ito), and a marker for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STAGE_MARKERS = {
    "zero_shot": "P",
    "baseline": "s",
    "paper_defaults": "D",
    "best": "*",
    "best_again": "p",
    "paper": "X",
}


def study_pictures(
    study: StudyRecord,
    outcome_before: TestOutcome,
    outcome_after: TestOutcome,
    classes: Sequence[str],
    domains: Sequence[str],
    note: str,
) -> dict[str, bytes]:
    """All pictures of a study.

    Args:
        study: The finished study.
        outcome_before: What came of the untouched model.
        outcome_after: What came of the best configuration.
        classes: Class names in the order of their numbers.
        domains: Domain names in the order of their numbers.
        note: Put under each title, such as "synthetic demo data".

    Returns:
        PNG bytes by file name.
    """
    before, after = outcome_before.test, outcome_after.test
    maps = _feature_maps(before, after)
    # Over all seeds, where the pictures of features show the first.
    mean_before, mean_after = (
        (study.finals[stage].test if stage in study.finals else None) or result.scores
        for stage, result in (("zero_shot", before), ("best", after))
    )
    draw = {
        "mem_against_for.png": lambda figure: draw_trade_off(figure.subplots(), study),
        "history.png": lambda figure: draw_history(figure.subplots(), study),
        "accuracy_by_domain.png": lambda figure: draw_domains(
            figure.subplots(), study, mean_before, mean_after
        ),
        "features.png": lambda figure: draw_features(
            figure.subplots(1, 2), maps, (before, after), domains, study.forget
        ),
    }
    pictures = {}
    for name, function in draw.items():
        figure = _figure(9 if name == "features.png" else 6, 4.6, study, note)
        function(figure)
        pictures[name] = _png(figure)
    if outcome_before.attention is not None and outcome_after.attention is not None:
        figure = _figure(9, 5.6, study, note)
        draw_attention(figure, outcome_before.attention, outcome_after.attention, study.forget)
        pictures["attention.png"] = _png(figure)
    if set(study.forget) - set(domains):
        # Some classes of a domain: the mean of the domain hides them.
        figure = _figure(9, 1.6 + 0.3 * len(classes), study, note)
        draw_cells(figure, (before, after), study.forget, classes, domains)
        pictures["accuracy_by_class.png"] = _png(figure)
    figure = _figure(13, 10, study, note)
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    scatter, history = top.subplots(1, 2)
    bars, first, second = bottom.subplots(1, 3, width_ratios=(1.2, 1, 1))
    draw_trade_off(scatter, study)
    draw_history(history, study)
    draw_domains(bars, study, mean_before, mean_after)
    draw_features(np.array([first, second]), maps, (before, after), domains, study.forget)
    pictures["report.png"] = _png(figure)
    return pictures


def draw_trade_off(axes: Axes, study: StudyRecord) -> None:
    """Mem against For: trials on validation images, final runs on test images."""
    for state, filled in (("complete", True), ("stopped", False)):
        scores = [t.val for t in study.trials if t.state == state and t.val is not None]
        axes.scatter(
            [100 * s.mem for s in scores],
            [100 * s.for_ for s in scores],
            s=28,
            facecolors="#888888" if filled else "none",
            edgecolors="#666666",
            label=f"trial, {state} (validation)" if scores else None,
        )
    for colour, (stage, marker) in zip(COLOURS, STAGE_MARKERS.items(), strict=False):
        test = study.finals[stage].test if stage in study.finals else None
        if test is not None:
            axes.scatter(
                100 * test.mem,
                100 * test.for_,
                s=170 if marker == "*" else 75,
                marker=marker,
                color=colour,
                edgecolors="black",
                zorder=3,
                label=f"{study.finals[stage].label} (test): H {100 * test.h:.1f}",
            )
    axes.set(xlabel="Mem, %", ylabel="For, %", xlim=(0, 103), ylim=(0, 103))
    axes.set_title("Kept against forgotten", fontsize=11)
    _draw_equal_h(axes)
    axes.legend(fontsize=7, loc="lower left", framealpha=0.9)


def draw_history(axes: Axes, study: StudyRecord) -> None:
    """Validation H of every trial, and the best so far."""
    trials = sorted(study.trials, key=lambda trial: trial.number)
    for state, marker, filled in (("complete", "o", True), ("stopped", "o", False)):
        chosen = [t for t in trials if t.state == state and t.val is not None]
        axes.scatter(
            [t.number for t in chosen],
            [100 * t.val.h for t in chosen if t.val],
            marker=marker,
            s=30,
            facecolors=COLOURS[0] if filled else "none",
            edgecolors=COLOURS[0],
            label=f"trial, {state}" if chosen else None,
        )
    failed = [t.number for t in trials if t.state == "failed"]
    axes.scatter(failed, [0] * len(failed), marker="x", color="black", label=_or_none(failed))
    complete = [(t.number, 100 * t.val.h) for t in trials if t.state == "complete" and t.val]
    if complete:
        best = np.maximum.accumulate([h for _, h in complete])
        numbers = [number for number, _ in complete]
        axes.step(numbers, best, where="post", color=COLOURS[1], label="best so far")
    axes.set(xlabel="trial (0: the defaults)", ylabel="validation H, %", ylim=(-3, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Optimisation history", fontsize=11)
    axes.legend(fontsize=7, loc="lower right")


def draw_domains(axes: Axes, study: StudyRecord, before: Scores, after: Scores) -> None:
    """Accuracy of each domain before and after."""
    domains = list(before.accuracy_by_domain)
    places = np.arange(len(domains))
    for shift, scores, label, colour, hatch in (
        (-0.2, before, "before (zero-shot)", "#BBBBBB", ""),
        (0.2, after, "after", COLOURS[0], "//"),
    ):
        heights = [100 * scores.accuracy_by_domain[domain] for domain in domains]
        bars = axes.bar(
            places + shift, heights, 0.38, label=label, color=colour, hatch=hatch, edgecolor="white"
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    touched = forget_domains(study.forget, domains)
    names = [f"{name}\n(forget)" if name in touched else name for name in domains]
    axes.set_xticks(places, [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set(ylabel="test accuracy, %", ylim=(0, 122))
    axes.set_yticks(range(0, 101, 20))
    axes.set_title("Accuracy by domain", fontsize=11)
    axes.legend(fontsize=7, loc="upper center", ncols=2)


def draw_cells(
    figure: Figure,
    results: Sequence[TestResult],
    forget: Sequence[str],
    classes: Sequence[str],
    domains: Sequence[str],
) -> None:
    """Accuracy of each class in each domain before and after; what is to be forgotten is framed."""
    places = figure.subplots(1, 2, sharey=True)
    to_forget = np.argwhere(forget_mask(forget, classes, domains))
    for place, result, title in zip(places, results, ("before", "after"), strict=True):
        right_CD, all_CD = result.counts_2CD
        percent_CD = 100 * right_CD / np.where(all_CD, all_CD, np.nan)
        place.imshow(percent_CD, cmap="Blues", vmin=0, vmax=130, aspect="auto")
        for (c, d), percent in np.ndenumerate(percent_CD):
            shown = "" if np.isnan(percent) else f"{percent:.0f}"
            place.text(d, c, shown, ha="center", va="center", fontsize=8)
        for c, d in to_forget:
            frame = Rectangle((d - 0.5, c - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], lw=2)
            place.add_patch(frame)
        names = [name.replace("_", "\n") for name in domains]
        place.set_xticks(range(len(domains)), names, fontsize=8)
        place.set_yticks(range(len(classes)), classes, fontsize=8)
        place.set_title(f"Test accuracy {title}, %; framed: to forget", fontsize=11)


def draw_features(
    axes: np.ndarray,
    maps: Sequence[np.ndarray],
    results: Sequence[TestResult],
    domains: Sequence[str],
    forget: Sequence[str],
) -> None:
    """Two-dimensional maps of test images' features before and after."""
    for place, map_N2, result, title in zip(axes, maps, results, ("before", "after"), strict=True):
        touched = forget_domains(forget, domains)
        for number, domain in enumerate(domains):
            rows = result.domain_N == number
            place.scatter(
                map_N2[rows, 0],
                map_N2[rows, 1],
                s=14,
                marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                alpha=0.75,
                linewidths=0,
                label=f"{domain} (forget)" if domain in touched else domain,
            )
        place.set(xticks=[], yticks=[])
        place.set_title(f"Features, {title} (t-SNE)", fontsize=11)
    axes[-1].legend(fontsize=7, loc="best", framealpha=0.9)


def draw_attention(
    figure: Figure, before: SampleAttention, after: SampleAttention, forget: Sequence[str]
) -> None:
    """Sample images, and over them where the class token looks before and after."""
    n_images = len(before.images_NHWC)
    grid = figure.subplots(3, n_images, squeeze=False)
    titles = ("image", "before", "after")
    for column in range(n_images):
        domain = before.domain_N[column]
        touched = forget_domains(forget, before.domain_N)
        name = f"{domain}{' (forget)' if domain in touched else ''}".replace("_", " ")
        grid[0, column].set_title(f"{name}\n{before.class_N[column]}", fontsize=8)
        image_HWC = before.images_NHWC[column]
        extent = (0, image_HWC.shape[1], image_HWC.shape[0], 0)
        grey_HW = image_HWC.mean(axis=-1)
        maps = (before.attention_NHW[column], after.attention_NHW[column])
        # One scale for both, so that they can be compared.
        brightest = max(float(each.max()) for each in maps)
        grid[0, column].imshow(image_HWC, extent=extent)
        for row, map_HW in enumerate(maps, start=1):
            grid[row, column].imshow(grey_HW, extent=extent, cmap="gray", alpha=0.6)
            grid[row, column].imshow(
                map_HW, extent=extent, cmap="inferno", alpha=0.6, vmin=0, vmax=brightest
            )
        for row in range(3):
            grid[row, column].set(xticks=[], yticks=[])
    for row, title in enumerate(titles):
        grid[row, 0].set_ylabel(title, fontsize=10)


def _feature_maps(before: TestResult, after: TestResult) -> tuple[np.ndarray, np.ndarray]:
    return _map_2d(before.features_NE), _map_2d(after.features_NE)


def _map_2d(features_NE: np.ndarray) -> np.ndarray:
    n = len(features_NE)
    if n < 5:
        return np.pad(features_NE[:, :2], ((0, 0), (0, max(0, 2 - features_NE.shape[1]))))
    tsne = TSNE(init="pca", random_state=0, perplexity=min(30, (n - 1) / 3))
    return tsne.fit_transform(features_NE.astype(np.float32))


def _draw_equal_h(axes: Axes) -> None:
    mem, for_ = np.meshgrid(np.linspace(0.5, 103, 120), np.linspace(0.5, 103, 120))
    h = np.vectorize(harmonic_mean)(mem, for_)
    lines = axes.contour(
        mem, for_, h, levels=range(20, 100, 20), colors="#BBBBBB", linewidths=0.7, zorder=0
    )
    axes.clabel(lines, fmt="H %d", fontsize=7)


def _or_none(failed: Sequence[int]) -> str | None:
    return "trial, failed" if failed else None


def _figure(width: float, height: float, study: StudyRecord, note: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Forget {' + '.join(study.forget)}" + (f"  ({note})" if note else ""))
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
