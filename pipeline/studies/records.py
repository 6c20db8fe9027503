"""Records of trials, final runs and studies, and the file that a finished study is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        number: Optuna's number of it, from 0.
        params: What was tried, by option path.
        epochs_done: Epochs that it was let run.
        state: ``complete``, ``stopped`` early, or ``failed``.
        val: Validation scores after its last epoch.
        wall_s: From the end of its executor's trial before to its own.
        loop_s: Of that, time inside the training loop.
        error: Why it failed, in one line.
    """

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
    """All that came of one forget set.

    Attributes:
        forget: The forget domains.
        trials: Finished trials.
        best: The chosen one, by validation images.
        finals: Final runs by stage.
        complete: Whether it has come to its end.
        ended_by: The budget that was spent: ``trials``, ``wall time``, ``target H``, ``patience``.
    """

    forget: tuple[str, ...]
    trials: list[TrialRecord]
    best: TrialRecord | None
    finals: dict[str, FinalRecord]
    complete: bool
    ended_by: str = "trials"


def write_study_record(record: StudyRecord, file: str) -> None:
    """Writes a study's record so that `read_study_record` gives it back."""
    values = asdict(record)
    for stage, final in record.finals.items():
        values["finals"][stage]["run"] = final.run.model_dump(mode="json", by_alias=True)
    storage.write_bytes(file, json.dumps(values, indent=2).encode())


def read_study_record(file: str) -> StudyRecord:
    """Reads what `write_study_record` has written."""
    values = json.loads(storage.read_bytes(file))
    return StudyRecord(
        forget=tuple(values["forget"]),
        trials=[_trial(trial) for trial in values["trials"]],
        best=_trial(values["best"]) if values["best"] else None,
        finals={stage: _final(final) for stage, final in values["finals"].items()},
        complete=values["complete"],
        ended_by=values["ended_by"],
    )


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
