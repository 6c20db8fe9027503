"""What a search has found: records of trials and studies, ``summary.json``, the end table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adu import storage
from adu.metrics import Scores
from adu.trainer import RunConfig

# Stages of a study's final runs, in the order of the table, as a person reads them.
STAGES = {
    "zero_shot": "zero-shot",
    "baseline": "Baseline",
    "paper_defaults": "ADU, paper defaults",
    "best": "ADU, searched",
}


@dataclass
class TrialRecord:
    """One finished trial.

    Attributes:
        trial_id: Tune's name of it.
        number: Optuna's number of it, from 0.
        params: What was tried, by option path.
        epochs_done: Epochs that it was let run.
        state: ``complete``, ``stopped`` early, or ``failed``.
        val: Validation scores after its last epoch.
        wall_s: From the end of its executor's trial before to its own.
        loop_s: Of that, time inside the training loop.
        error: Why it failed, in one line.
    """

    trial_id: str
    number: int
    params: dict[str, Any]
    epochs_done: int
    state: Literal["complete", "stopped", "failed"]
    val: Scores | None
    wall_s: float
    loop_s: float
    error: str | None = None


@dataclass
class FinalRecord:
    """A configuration on the test split.

    Attributes:
        stage: A key of `STAGES`.
        run: The configuration (of the first seed).
        val: Validation scores, averaged over the seeds.
        test: Test scores, averaged over the seeds; H is the mean of the runs' H.
        seeds: Seeds of the runs.
        test_by_seed: Test scores of every run.
    """

    stage: str
    run: RunConfig
    val: Scores | None
    test: Scores
    seeds: tuple[int, ...]
    test_by_seed: tuple[Scores, ...] = ()


@dataclass
class StudyRecord:
    """All that came of one forget set."""

    forget: tuple[str, ...]
    trials: list[TrialRecord]
    best: TrialRecord | None
    finals: dict[str, FinalRecord]
    complete: bool


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


def write_summary(record: SearchRecord, file: Path) -> None:
    """Writes ``summary.json``, whole or not at all."""
    summary = {
        "name": record.name,
        "synthetic": record.synthetic,
        "interrupted": record.interrupted,
        **record.details,
        "studies": [_study_summary(study) for study in record.studies],
        "timing": asdict(record.timing),
    }
    storage.write_bytes(str(file), json.dumps(summary, indent=2).encode())


def write_study_record(record: StudyRecord, file: Path) -> None:
    """Writes a study's record so that `read_study_record` gives it back."""
    values = asdict(record)
    for stage, final in record.finals.items():
        values["finals"][stage]["run"] = final.run.model_dump(mode="json", by_alias=True)
    storage.write_bytes(str(file), json.dumps(values, indent=2).encode())


def read_study_record(file: Path) -> StudyRecord:
    """Reads what `write_study_record` has written."""
    values = json.loads(file.read_text(encoding="utf-8"))
    return StudyRecord(
        forget=tuple(values["forget"]),
        trials=[_trial(trial) for trial in values["trials"]],
        best=_trial(values["best"]) if values["best"] else None,
        finals={stage: _final(final) for stage, final in values["finals"].items()},
        complete=values["complete"],
    )


def render_summary(record: SearchRecord, folder: Path, ui_command: str) -> RenderableType:
    """The end of a search on the terminal: a table, what it means, and where to look.

    Args:
        record: What was found.
        folder: The search's output folder.
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
    lines = [verdict(study) for study in record.studies if study.finals]
    if record.interrupted:
        lines.append("Interrupted: the table holds what was finished.")
    lines.append(f"results   {folder}")
    lines.append(f"browse    {ui_command}")
    return Group(table, Text("\n".join(lines), overflow="fold"))


def verdict(study: StudyRecord) -> str:
    """Whether the search beat the paper's defaults on test, in one sentence."""
    name = "+".join(study.forget)
    if "best" not in study.finals or "paper_defaults" not in study.finals:
        return f"{name}: no trial to compare with the defaults."
    gain = 100 * (study.finals["best"].test.h - study.finals["paper_defaults"].test.h)
    if gain > 0:
        return f"{name}: the search beat the paper's defaults by {gain:.1f} points of H."
    if gain == 0:
        return f"{name}: the search did no better than the paper's defaults."
    return f"{name}: the search did NOT beat the paper's defaults ({gain:.1f} points of H)."


def _add_study(table: Table, study: StudyRecord) -> None:
    name = "+".join(study.forget)
    if not study.finals:
        done = len(study.trials)
        table.add_row(name, f"not finished: {done} trial{'s' * (done != 1)}", "", "", "")
    for stage, label in STAGES.items():
        if stage in study.finals:
            table.add_row(name, label, *_cells(study.finals[stage]))
            name = ""
    table.add_section()


def _cells(final: FinalRecord) -> list[str]:
    return [_cell([s.as_dict()[key] for s in _runs(final)]) for key in ("mem", "for", "h")]


def _runs(final: FinalRecord) -> Sequence[Scores]:
    return final.test_by_seed or (final.test,)


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
            "val": study.best.val.as_dict() if study.best.val else None,
            **(_test_summary(final) if final else {"test": None}),
        }
    return {
        "forget": list(study.forget),
        "n_trials": len(study.trials),
        "n_stopped": sum(trial.state == "stopped" for trial in study.trials),
        "n_failed": sum(trial.state == "failed" for trial in study.trials),
        "selected_on": "val",
        "complete": study.complete,
        "best": best,
        "baselines": {
            stage: _test_summary(study.finals[stage])
            for stage in STAGES
            if stage != "best" and stage in study.finals
        },
    }


def _test_summary(final: FinalRecord) -> dict[str, Any]:
    runs = _runs(final)
    summary: dict[str, Any] = {
        "test": final.test.as_dict(),
        "accuracy_by_domain": final.test.accuracy_by_domain,
        "seeds": list(final.seeds),
    }
    if len(runs) > 1:
        summary["test_std"] = {
            key: _deviation([scores.as_dict()[key] for scores in runs])
            for key in final.test.as_dict()
        }
    return summary


def _trial(values: Mapping[str, Any]) -> TrialRecord:
    return TrialRecord(**{**values, "val": _scores(values["val"])})


def _final(values: Mapping[str, Any]) -> FinalRecord:
    test = _scores(values["test"])
    assert test is not None
    return FinalRecord(
        stage=values["stage"],
        run=RunConfig.model_validate(values["run"]),
        val=_scores(values["val"]),
        test=test,
        seeds=tuple(values["seeds"]),
        test_by_seed=tuple(Scores(**scores) for scores in values["test_by_seed"]),
    )


def _scores(values: Mapping[str, Any] | None) -> Scores | None:
    return Scores(**values) if values else None
