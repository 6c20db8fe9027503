"""What a proof ends with: a page with all of it, and its figures beside it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adu import storage
from adu.evidence.references import KNOWS_NOTHING, NEVER_SAW, UNTOUCHED
from adu.evidence.verdict import NOTHING_GONE, Standing, accuracies, estimate, steps_to_half
from pipeline.patience import patiently
from pipeline.results.evidence import Evidence, evidence_figures, with_interval
from pipeline.tracking.wanted import EVIDENCE

PAGE, FIGURES = EVIDENCE

TEMPLATE = Path(__file__).with_name("evidence.html.j2")

# What no battery of this kind can say, whatever it finds.
NEVER_TESTED = (
    "Attacks that nobody has thought of, or with more images, steps and compute than here.",
    "Captions or image regions that were no part of the manifest.",
    "Whether the model can be asked again and again by somebody who adapts to its answers.",
)
RELEARNING = "relearning"
# Accuracy that a model must have lost before it is asked when half of it is back.
LEAST_LOST = 0.1


@dataclass(frozen=True)
class Row:
    """A row of a table: what was tried, and a cell for each model."""

    name: str
    cells: list[str]


def write_evidence(evidence: Evidence, place: str) -> None:
    """Writes the page and the figures.

    Args:
        evidence: What they show.
        place: Folder or URL.
    """
    figures = json.dumps(evidence_figures(evidence), indent=2)
    for name, text in ((FIGURES, figures), (PAGE, evidence_page(evidence))):
        url = storage.join(place, name)
        patiently(url, partial(storage.write_bytes, url, text.encode()))


def evidence_page(evidence: Evidence) -> str:
    """The page as HTML, with everything in it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    standings = evidence.standings
    return template.render(
        title=f"{evidence.label}, forget {evidence.facts['forget']}",
        verdict=evidence.verdict,
        has_seam=_has_seam(standings[evidence.label]),
        floor=NEVER_SAW if NEVER_SAW in standings else KNOWS_NOTHING,
        models=[label.replace("_", " ") for label in standings],
        summary=[
            Row("distance", [with_interval(its.distance) for its in standings.values()]),
            Row("kept accuracy", [with_interval(its.kept) for its in standings.values()]),
            Row("worst", [_worst(its) for its in standings.values()]),
        ],
        residuals=[
            Row(
                evidence.attacks[name].title,
                [with_interval(its.by_attack[name]) for its in standings.values()],
            )
            for name in evidence.counted
        ],
        variants={
            evidence.attacks[name]: _variants(evidence, name) for name in evidence.counted
        }.items(),
        others={
            evidence.attacks[name]: rows
            for name in evidence.attacks
            if (rows := _others(evidence, name))
        }.items(),
        curves=_curves_picture(evidence),
        columns=_columns(len(_curves(evidence))),
        half=_half_rows(evidence),
        untested=_untested(evidence),
        facts=evidence.facts,
    )


def _has_seam(standing: Standing) -> bool:
    removal = standing.by_attack.get("removal")
    return removal is not None and removal.mean >= NOTHING_GONE


def _worst(standing: Standing) -> str:
    return "–" if standing.worst is None else with_interval(standing.worst[1])


def _variants(evidence: Evidence, attack: str) -> list[Row]:
    """Accuracy on the forgotten domain after each variant of an attack."""
    found = accuracies(evidence.outcomes)
    names = {
        name: None
        for by_seed in found.values()
        for its in by_seed.values()
        for its_attack, name in its
        if its_attack == attack
    }

    def cell(label: str, name: str) -> str:
        values = [its[attack, name] for its in found[label].values() if (attack, name) in its]
        return with_interval(estimate(values)) if values else "–"

    return [Row(name, [cell(label, name) for label in evidence.standings]) for name in names]


def _others(evidence: Evidence, attack: str) -> list[Row]:
    """What else was measured."""
    of_attack = [outcome for outcome in evidence.outcomes if outcome.attack == attack]
    names = {name: None for outcome in of_attack for name in outcome.figures.others}

    def cell(label: str, name: str) -> str:
        values = [
            outcome.figures.others[name]
            for outcome in of_attack
            if outcome.label == label and name in outcome.figures.others
        ]
        return with_interval(estimate(values), factor=1, digits=2) if values else "–"

    return [Row(name, [cell(label, name) for label in evidence.standings]) for name in names]


def _curves(evidence: Evidence) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Accuracy against steps, the mean over seeds, by what was relearned from and by model."""
    found: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    for outcome in evidence.outcomes:
        if outcome.attack == RELEARNING:
            for name, curve in outcome.figures.curves.items():
                found.setdefault(name, {}).setdefault(outcome.label, []).append(curve)
    return {
        name: {
            label: [
                (points[0][0], mean(accuracy for _, accuracy in points))
                for points in zip(*curves, strict=True)
            ]
            for label, curves in by_label.items()
        }
        for name, by_label in found.items()
    }


def _half_rows(evidence: Evidence) -> list[Row]:
    """Steps until half of the lost accuracy is back, where some was lost."""
    rows = []
    for name, by_label in _curves(evidence).items():
        cells = []
        for label in evidence.standings:
            curve, untouched = by_label[label], by_label[UNTOUCHED][0][1]
            if untouched - curve[0][1] < LEAST_LOST:
                cells.append("–")
                continue
            steps = steps_to_half(curve, curve[0][1], untouched)
            cells.append(f"over {curve[-1][0]}" if steps is None else str(steps))
        rows.append(Row(name, cells))
    return rows


def _curves_picture(evidence: Evidence) -> str:
    """The relearning curves as a picture within the page; empty if there are none."""
    curves = _curves(evidence)
    if not curves:
        return ""
    columns = _columns(len(curves))
    n_rows = -(-len(curves) // columns)
    figure = Figure(
        figsize=(1.2 + 3.2 * columns, 0.8 + 2.6 * n_rows), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, columns, sharey=True, squeeze=False).flatten()
    for axes, (name, by_label) in zip(panels, curves.items(), strict=False):
        for label, curve in by_label.items():
            axes.plot(
                [step for step, _ in curve],
                [100 * accuracy for _, accuracy in curve],
                linewidth=2.5 if label == evidence.label else 1.2,
                label=label.replace("_", " "),
            )
        axes.set(title=name, xlabel="steps", ylim=(0, 100))
    for axes in panels[len(curves) :]:
        axes.axis("off")
    figure.supylabel("accuracy on the forgotten domain, %", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _columns(n_curves: int) -> int:
    return min(3, n_curves)


def _untested(evidence: Evidence) -> list[str]:
    """What was not tried on the model in question, and what cannot be."""
    found = {
        f"{what}: {why}.": None
        for outcome in evidence.outcomes
        if outcome.label == evidence.label
        for what, why in outcome.figures.untested.items()
    }
    quick = ["A quick proof: fewer images, variants and references."] if evidence.quick else []
    return [*quick, *found, *NEVER_TESTED]
