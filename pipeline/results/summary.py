"""What a search has found: ``summary.json`` and the table at its end."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adu import storage
from adu.evaluation.metrics import Scores
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.results.comparison import (
    KEPT_SHARE,
    Difference,
    difference,
    handed_out,
    lost,
    lost_domains,
    noise,
    outlook,
    verdict,
    within_noise,
)
from pipeline.studies.records import SEARCHED, STAGES, FinalRecord, StudyRecord, TrialRecord
from pipeline.studies.selection import pareto_front

# Of the last lines, in columns.
WIDTH = 96

# Behind the Mem of a model that has lost too much of it.
LOST = " !"
LOST_NOTE = (
    f"{LOST.strip()} LOST what it should keep: Mem is below search.min_mem (unset: {KEPT_SHARE} of "
    "zero-shot's), or accuracy on one of the domains to keep is below search.min_mem_each (unset: "
    "that share)."
)


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
    said += [
        f"{forget_name(study.forget)}, attacked: {study.proof['verdict']}"
        for study in record.studies
        if study.proof
    ]
    if any(lost(study, final) for study in record.studies for final in study.finals.values()):
        said.insert(0, LOST_NOTE)
    lines = [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in said]
    if record.interrupted:
        lines.append("Interrupted: the table holds what was finished.")
    lines.append(f"results   {output}")
    lines.append(f"browse    {ui_command}")
    return Group(table, Text("\n".join(lines), overflow="fold"))


def _add_study(table: Table, study: StudyRecord) -> None:
    name = forget_name(study.forget)
    if not study.finals:
        done = len(study.trials)
        table.add_row(name, f"not finished: {done} trial{'s' * (done != 1)}", "", "", "")
    for stage in STAGES:
        if stage in study.finals:
            final = study.finals[stage]
            mem, *others = _cells(final)
            table.add_row(name, final.label, mem + LOST * lost(study, final), *others)
            name = ""
    table.add_section()


def _cells(final: FinalRecord) -> list[str]:
    if final.test is None:
        return ["failed", "", ""]
    return [_cell([s.as_dict()[key] for s in _runs(final)]) for key in ("mem", "for", "h")]


def _runs(final: FinalRecord) -> Sequence[Scores]:
    return final.test_by_seed or ((final.test,) if final.test else ())


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def _study_summary(study: StudyRecord) -> dict[str, Any]:
    best, taken = None, handed_out(study)
    if study.best is not None:
        final = study.finals.get("best")
        best = {
            **_compared(study.best),
            **(_test_summary(final) if final else {"test": None}),
            "handed_out": _taken(study, *taken) if taken else None,
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
        "gain_over_defaults": _gain_summary(difference(study, "paper_defaults")),
        "gain_over_baseline": _gain_summary(difference(study, "baseline")),
        "gain_over_paper": _gain_summary(difference(study, "paper")),
        "noise_h_points": noise(study),
        "within_noise": within_noise(study),
        "outlook": outlook(study),
        "proof": study.proof or None,
        "lost": [stage for stage, final in study.finals.items() if lost(study, final)],
        "compared": [_compared(trial) for trial in study.trials if trial.again],
        "pareto_front": [
            {"trial": trial.number, "val": trial.val.as_dict()}
            for trial in pareto_front(study.trials)
            if trial.val
        ],
        "baselines": {
            stage: _test_summary(study.finals[stage])
            for stage in STAGES
            if stage not in SEARCHED and stage in study.finals
        },
    }


def _taken(study: StudyRecord, seed: int, test: Scores) -> dict[str, Any]:
    """The model to take, and the domains to keep that it has lost."""
    return {"seed": seed, "test": test.as_dict(), "lost_domains": lost_domains(study, test)}


def _gain_summary(gain: Difference | None) -> dict[str, Any] | None:
    """A paired difference on test, in points of H."""
    if gain is None:
        return None
    return {"h_points": gain.mean, "by_seed": gain.by_seed, "interval_95": gain.interval}


def _compared(trial: TrialRecord) -> dict[str, Any]:
    """A configuration and its seeds."""
    return {
        "trial": trial.number,
        "params": trial.params,
        "val": trial.mean.as_dict() if trial.mean else None,
        "val_h_by_seed": [scores.h for scores in trial.looks],
        "val_h_of_tries": {seed: scores.h for seed, scores in trial.tries.items()},
    }


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
            key: stdev([scores.as_dict()[key] for scores in runs]) for key in final.test.as_dict()
        }
    return summary
