"""What a search has found: ``summary.json`` and the table at its end."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adu import storage
from adu.evaluation.metrics import Scores
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.studies.records import STAGES, FinalRecord, StudyRecord
from pipeline.studies.selection import pareto_front

# Of the last lines, in columns.
WIDTH = 96


@dataclass
class Timing:
    """Where the time of a search went, in seconds."""

    wall_s: float = 0.0
    executor_start_s: float = 0.0
    train_s: float = 0.0
    trial_overhead_median_s: float | None = None


@dataclass
class SearchRecord:
    """All that a search found.

    Attributes:
        name: Name of the search.
        studies: Its studies, finished or not.
        timing: Where the time went.
        synthetic: Whether the images were made up by a program.
        interrupted: Whether it was ended before its time.
        details: More for ``summary.json``: manifest digest, backbone, tracking URI.
    """

    name: str
    studies: list[StudyRecord]
    timing: Timing
    synthetic: bool
    interrupted: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def write_summary(record: SearchRecord, file: str) -> None:
    """Writes ``summary.json``, whole or not at all."""
    summary = {
        "name": record.name,
        "synthetic": record.synthetic,
        "interrupted": record.interrupted,
        **record.details,
        "studies": [_study_summary(study) for study in record.studies],
        "timing": asdict(record.timing),
    }
    data = json.dumps(summary, indent=2).encode()
    patiently(file, lambda: storage.write_bytes(file, data))


def render_summary(record: SearchRecord, output: str, ui_command: str) -> RenderableType:
    """The end of a search on the terminal: a table, what it means, and where to look.

    Args:
        record: What was found.
        output: The search's output.
        ui_command: What opens the MLflow UI.
    """
    title = f"{record.name}: test split, %" + (" (synthetic data)" if record.synthetic else "")
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("forget", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right", no_wrap=True)
    for study in record.studies:
        _add_study(table, study)
    # Where nobody watches, paths stay whole and nothing else is folded later.
    said = [verdict(study) for study in record.studies if study.finals]
    lines = [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in said]
    if record.interrupted:
        lines.append("Interrupted: the table holds what was finished.")
    lines.append(f"results   {output}")
    lines.append(f"browse    {ui_command}")
    return Group(table, Text("\n".join(lines), overflow="fold"))


def verdict(study: StudyRecord) -> str:
    """Whether the search beat the paper's defaults on test, in one sentence."""
    name = forget_name(study.forget)
    gains = paired_gains(study)
    if not gains:
        return f"{name}: no trial to compare with the defaults."
    gain = sum(gains) / len(gains)
    points = f"{gain:+.1f}"
    if len(gains) > 1:
        points += f" ± {_deviation(gains):.1f}"
    points += f" points of H, {len(gains)} seed{'s' * (len(gains) > 1)}"
    return f"{name}: the search {judgement(gains)} ({points})."


def judgement(gains: Sequence[float]) -> str:
    """Whether points of H, seed by seed, are better than the paper's defaults; in words."""
    gain = sum(gains) / len(gains)
    if gain <= 0:
        return "did NOT beat the paper's defaults"
    if len(gains) > 1 and gain < _deviation(gains):
        return "beat the paper's defaults by less than seeds differ"
    return "beat the paper's defaults"


def paired_gains(study: StudyRecord) -> list[float]:
    """Points of test H by which the search beat the paper's defaults, seed by seed."""
    if "best" not in study.finals or "paper_defaults" not in study.finals:
        return []
    best, paper = study.finals["best"], study.finals["paper_defaults"]
    paper_h = dict(zip(paper.seeds, (s.h for s in _runs(paper)), strict=True))
    best_h = dict(zip(best.seeds, (s.h for s in _runs(best)), strict=True))
    return [100 * (best_h[seed] - paper_h[seed]) for seed in best.seeds if seed in paper_h]


def _add_study(table: Table, study: StudyRecord) -> None:
    name = forget_name(study.forget)
    if not study.finals:
        done = len(study.trials)
        table.add_row(name, f"not finished: {done} trial{'s' * (done != 1)}", "", "", "")
    for stage in STAGES:
        if stage in study.finals:
            final = study.finals[stage]
            table.add_row(name, final.label, *_cells(final))
            name = ""
    table.add_section()


def _cells(final: FinalRecord) -> list[str]:
    if final.test is None:
        return ["failed", "", ""]
    return [_cell([s.as_dict()[key] for s in _runs(final)]) for key in ("mem", "for", "h")]


def _runs(final: FinalRecord) -> Sequence[Scores]:
    return final.test_by_seed or ((final.test,) if final.test else ())


def _cell(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f} ± {100 * _deviation(values):.1f}"


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def _study_summary(study: StudyRecord) -> dict[str, Any]:
    best = None
    if study.best is not None:
        final = study.finals.get("best")
        best = {
            "trial": study.best.number,
            "params": study.best.params,
            "val": study.best.mean.as_dict() if study.best.mean else None,
            "val_h_by_seed": [scores.h for scores in study.best.looks],
            **(_test_summary(final) if final else {"test": None}),
        }
    return {
        "forget": list(study.forget),
        "n_trials": len(study.trials),
        "n_stopped": sum(trial.state == "stopped" for trial in study.trials),
        "n_failed": sum(trial.state == "failed" for trial in study.trials),
        "ended_by": study.ended_by,
        "selected_on": "val",
        "complete": study.complete,
        "best": best,
        "gain_over_defaults": _gain_summary(study),
        "pareto_front": [
            {"trial": trial.number, "val": trial.val.as_dict()}
            for trial in pareto_front(study.trials)
            if trial.val
        ],
        "baselines": {
            stage: _test_summary(study.finals[stage])
            for stage in STAGES
            if stage != "best" and stage in study.finals
        },
    }


def _gain_summary(study: StudyRecord) -> dict[str, Any] | None:
    """The paired difference of best and defaults on test, in points of H."""
    gains = paired_gains(study)
    if not gains:
        return None
    summary: dict[str, Any] = {"h_points": sum(gains) / len(gains), "by_seed": gains}
    if len(gains) > 1:
        summary["std"] = _deviation(gains)
    return summary


def _test_summary(final: FinalRecord) -> dict[str, Any]:
    runs = _runs(final)
    summary: dict[str, Any] = {
        "test": final.test.as_dict() if final.test else None,
        "accuracy_by_domain": final.test.accuracy_by_domain if final.test else None,
        "seeds": list(final.seeds),
    }
    if final.errors:
        summary["errors"] = final.errors
    if final.test and len(runs) > 1:
        summary["test_std"] = {
            key: _deviation([scores.as_dict()[key] for scores in runs])
            for key in final.test.as_dict()
        }
    return summary
