"""What Optuna's storage holds of a study beside its trials' parameters and values: attributes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from adu.evaluation.metrics import Scores
from adu.training.trainer import EpochReport
from pipeline.studies.goal import Goal
from pipeline.studies.records import TrialRecord

# Of a trial: its record, once it has ended, and the figures of each epoch.
RECORD = "record"
SCORES = "val, epoch "

# Of a study.
SEARCHED_S = "searched_s"
AGAIN = "again, "
TRY = "try, "
ZERO_SHOT_MEM = "zero-shot mem"
ZERO_SHOT_KEPT = "zero-shot, by domain to keep"

# Before a domain's name: accuracy on it.
ACCURACY = "accuracy/"


def figures_of(scores: Scores) -> dict[str, float]:
    """Scores under flat names: Mem, For and H first; `plain_scores` gives them back."""
    by_domain = scores.accuracy_by_domain.items()
    return {**scores.as_dict(), **{f"{ACCURACY}{domain}": value for domain, value in by_domain}}


def epoch_figures(report: EpochReport) -> dict[str, float]:
    """All figures of an epoch under flat names, those of the validation images first."""
    return {
        **figures_of(report.val),
        "lr": report.lr,
        "epoch_s": report.train_s + report.val_s,
        **{f"loss/{name}": value for name, value in report.losses.items()},
    }


def stored_epochs(attributes: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Figures of each epoch (`epoch_figures`), out of a trial's attributes in Optuna."""
    return {
        int(name.removeprefix(SCORES)): figures
        for name, figures in attributes.items()
        if name.startswith(SCORES)
    }


def stored_scores(attributes: Mapping[str, Any]) -> dict[int, Scores]:
    """Validation scores after each epoch, out of a trial's attributes in Optuna."""
    return {epoch: plain_scores(each) for epoch, each in stored_epochs(attributes).items()}


def stored_again(
    attributes: Mapping[str, Any], kinds: Sequence[str] = (AGAIN, TRY)
) -> dict[int, dict[int, Scores]]:
    """What trials came to with further seeds, by number and seed, out of a study's attributes."""
    found: dict[int, dict[int, Scores]] = {}
    for name, scores in attributes.items():
        for kind in (kind for kind in kinds if name.startswith(kind)):
            number, seed = map(int, name.removeprefix(kind).split(", "))
            found.setdefault(number, {})[seed] = plain_scores(scores)
    return found


def add_further_seeds(records: Iterable[TrialRecord], attributes: Mapping[str, Any]) -> None:
    """Gives records of trials what these came to with further seeds."""
    again, tries = (stored_again(attributes, [kind]) for kind in (AGAIN, TRY))
    for record in records:
        record.again.update(again.get(record.number, {}))
        record.tries.update(tries.get(record.number, {}))


def plain_scores(figures: Mapping[str, float]) -> Scores:
    """Scores out of `figures_of` them, and of other figures; of no known number of images."""
    by_domain = {
        name.removeprefix(ACCURACY): value
        for name, value in figures.items()
        if name.startswith(ACCURACY)
    }
    distance = figures.get("distance")
    return Scores(figures["mem"], figures["for"], figures["h"], by_domain, {}, distance)


def goal_beside(goal: Goal, attributes: Mapping[str, Any]) -> Goal:
    """A study's goal, where it is known what zero-shot has, out of the study's attributes."""
    mem, kept = attributes.get(ZERO_SHOT_MEM), attributes.get(ZERO_SHOT_KEPT)
    return replace(goal, zero_shot_mem=mem, zero_shot_kept=kept)


def stored_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a trial that has ended, without what further seeds came to."""
    values = json.loads(trial.user_attrs[RECORD])
    val = Scores(**values["val"]) if values["val"] else None
    return TrialRecord(**{**values, "val": val, "again": {}, "tries": {}})
