"""Records of trials, final runs and studies, and the file that a finished study is kept in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any, Literal

from adu import storage
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from pipeline.studies.goal import Goal

# Stages of a study's final runs, in the order of the table, as a person reads them; a method is
# put in.
STAGES = {
    "zero_shot": "zero-shot",
    "baseline": "Baseline",
    "paper": "{}, the paper's",
    "paper_defaults": "{}, {} defaults",
    "best": "{}, searched",
    "best_again": "{}, best seed again",
}

# Stages whose models are of the chosen configuration: with fresh seeds, which tell how good it is,
# and with the seed that was its best in the search, which has had luck.
SEARCHED = ("best", "best_again")

METHOD_LABELS = {
    "adu": "ADU",
    "baseline": "Baseline",
    "bbf": "BBF",
    "clipfit": "CLIPFit",
    "coop": "CoOp",
    "lp++": "LP++",
    "maple": "MaPLe",
    "zero_shot": "zero-shot",
}


def stage_label(stage: str, method: str = "ADU", recipe: str | None = None) -> str:
    """A stage as a person reads it; what is no stage of a study's stays as it is."""
    return STAGES.get(stage, stage).format(method, recipe or "paper")


def run_label(stage: str, run: RunConfig) -> str:
    """The stage of a final run as a person reads it."""
    name, recipe = run.method.name, getattr(run.method, "recipe", None)
    return stage_label(stage, METHOD_LABELS.get(name, name), recipe)


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
        again: Validation scores of the same configuration with further seeds, by seed.
        tries: The same with seeds that were run for their models, once it was chosen: they say
            nothing of how it compares with others.
    """

    number: int
    params: dict[str, Any]
    epochs_done: int
    state: Literal["complete", "stopped", "failed"]
    val: Scores | None
    wall_s: float
    loop_s: float
    error: str | None = None
    again: dict[int, Scores] = field(default_factory=dict)
    tries: dict[int, Scores] = field(default_factory=dict)

    @property
    def looks(self) -> list[Scores]:
        """Its validation scores, one a seed."""
        return [*([self.val] if self.val else []), *self.again.values()]

    @property
    def mean(self) -> Scores | None:
        """Validation scores averaged over its seeds; H is the mean of the runs' H."""
        if self.val is None:
            return None
        looks = self.looks
        distances = [look.distance for look in looks if look.distance is not None]
        return replace(
            self.val,
            mem=mean(look.mem for look in looks),
            for_=mean(look.for_ for look in looks),
            h=mean(look.h for look in looks),
            distance=mean(distances) if len(distances) == len(looks) else None,
        )


@dataclass
class FinalRecord:
    """A configuration on the test split.

    Attributes:
        stage: A key of `STAGES`.
        run: The configuration (of the first seed).
        val: Validation scores, averaged over the seeds.
        test: Test scores, averaged over the seeds; H is the mean of the runs' H.
        seeds: Seeds of the runs that came to their end.
        test_by_seed: Test scores of every one of them.
        errors: Why the others did not, by seed.
        val_by_seed: Validation scores of the former.
    """

    stage: str
    run: RunConfig
    val: Scores | None
    test: Scores | None
    seeds: tuple[int, ...]
    test_by_seed: tuple[Scores, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)
    val_by_seed: tuple[Scores, ...] = ()

    @property
    def label(self) -> str:
        """The stage as a person reads it."""
        return run_label(self.stage, self.run)


@dataclass
class StudyRecord:
    """All that came of one forget set.

    Attributes:
        forget: The forget domains.
        trials: Finished trials.
        best: The chosen one, by validation images.
        finals: Final runs by stage.
        complete: Whether it has come to its end.
        goal: What was searched for.
        ended_by: The budget that was spent: ``trials``, ``wall time``, ``target H``, ``patience``
            or ``the search's budget``.
        asked: The budgets and seeds that it has come to its end with.
        proof: What attacks on its best model came to: ``verdict``, and ``distance`` from 0 to 1.
    """

    forget: tuple[str, ...]
    trials: list[TrialRecord]
    best: TrialRecord | None
    finals: dict[str, FinalRecord]
    complete: bool
    ended_by: str = "trials"
    asked: dict[str, Any] = field(default_factory=dict)
    goal: Goal = Goal()
    proof: dict[str, Any] = field(default_factory=dict)


def grouped_failures(trials: Sequence[TrialRecord]) -> str:
    """Why all trials failed, the most frequent reason first."""
    reasons = Counter(trial.error or "" for trial in trials)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    return f"all {len(trials)} trials failed: {listed}"


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
        asked=values.get("asked", {}),
        goal=Goal(**values.get("goal", {})),
        proof=values.get("proof", {}),
    )


def _trial(values: Mapping[str, Any]) -> TrialRecord:
    again, tries = (
        {int(seed): Scores(**scores) for seed, scores in values.get(name, {}).items()}
        for name in ("again", "tries")
    )
    val = _scores(values["val"])
    return TrialRecord(**{**values, "val": val, "again": again, "tries": tries})


def _final(values: Mapping[str, Any]) -> FinalRecord:
    return FinalRecord(
        stage=values["stage"],
        run=RunConfig.model_validate(values["run"]),
        val=_scores(values["val"]),
        test=_scores(values["test"]),
        seeds=tuple(values["seeds"]),
        test_by_seed=tuple(Scores(**scores) for scores in values["test_by_seed"]),
        errors={int(seed): error for seed, error in values.get("errors", {}).items()},
        val_by_seed=tuple(Scores(**scores) for scores in values.get("val_by_seed", ())),
    )


def _scores(values: Mapping[str, Any] | None) -> Scores | None:
    return Scores(**values) if values else None
