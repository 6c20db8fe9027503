"""All that MLflow should hold of an output, read from it again whenever it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from adu import storage
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome, outcome_place, read_outcome, without_images
from pipeline.executors.run import Run
from pipeline.names import forget_name, mlflow_name
from pipeline.studies.attributes import (
    RECORD,
    add_further_seeds,
    goal_beside,
    stored_again,
    stored_record,
)
from pipeline.studies.chosen import read_chosen
from pipeline.studies.listener import RunListener
from pipeline.studies.records import SEARCHED, StudyRecord, read_study_record
from pipeline.studies.selection import best_seed, best_trial
from pipeline.tracking.facts import Facts, StudyFacts
from pipeline.tracking.fixed import SeedRun, configuration_runs, metrics_of_test
from pipeline.tracking.server import NOTE_TAG
from pipeline.tracking.wanted import (
    Metric,
    WantedRun,
    common_tags,
    domain_tags,
    run_key,
    study_files,
    text_of,
    trial_runs,
)


@dataclass(frozen=True)
class WantedModel:
    """A model that should be in the registry.

    Attributes:
        study: The study's folder, relative to the output.
        forget: The forget domains.
        run: Key of the run that it belongs to.
        checkpoint: Gives what was trained.
        version: Differs where the checkpoint does.
        seed: It was trained with: of the best configuration's, the best on validation images.
        scores: Its test scores.
        zero_shot: Those of the untouched model, where it was tested.
    """

    study: str
    forget: tuple[str, ...]
    run: str
    checkpoint: Callable[[], bytes]
    version: str
    seed: int
    scores: Scores
    zero_shot: Scores | None = None


class AtWork(RunListener):
    """The epochs of the runs at work that leave nothing but an outcome at their end."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[EpochReport]] = {}
        # When runs began, as far as this process knows, in ms since 1970.
        self.began_ms: dict[str, int] = {}

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Keeps an epoch's report."""
        if run.tested:
            began_s = time.time() - report.train_s - report.val_s
            self.began_ms.setdefault(run.outcome_file, int(1000 * began_s))
            known = self.epochs.setdefault(run.outcome_file, [])
            known[:] = [*(each for each in known if each.epoch < report.epoch), report]


class Truth:
    """Reads an output.

    Args:
        facts: What it is of.
        output: Folder or URL.
        database: Optuna's storage of a search's studies.
        at_work: What is known of runs at work; None if no command is at work in the output.
    """

    def __init__(
        self,
        facts: Facts,
        output: str,
        database: BaseStorage | None,
        at_work: AtWork | None = None,
    ) -> None:
        self.facts = facts
        self.output = output
        self._database = database
        self._at_work = at_work
        self._began_ms = at_work.began_ms if at_work is not None else {}
        # Of what cannot change any more.
        self._trials: dict[tuple[str, int, int], list[WantedRun]] = {}
        self._outcomes: dict[str, TestOutcome] = {}

    def end(self) -> None:
        """The command has come to its end: what is not finished now will not be."""
        self._at_work = None

    def runs(self) -> list[WantedRun]:
        """All runs as they should be now, parents first."""
        found: list[WantedRun] = []
        for study in self.facts.studies:
            found += self._study(study)
        if self.facts.fixed:
            found += self._fixed()
        return found

    def models(self) -> list[WantedModel]:
        """The models of the studies that are finished."""
        if not self.facts.register_models:
            return []
        return [model for study in self.facts.studies if (model := self._model(study))]

    # A search.

    def _study(self, study: StudyFacts) -> list[WantedRun]:
        trials, attributes = self.stored(study)
        again = stored_again(attributes)
        below: list[WantedRun] = []
        for trial in trials:
            below += self._trial(study, trial, again.get(trial.number, {}))
        seeds = self.finals(study)
        if not below and not seeds:
            return []
        status = self.status(study, trials)
        unfinished = "FAILED" if status == "FINISHED" else status
        below += configuration_runs(self.facts, run_key(study.name), seeds, unfinished)
        return [self._parent(study, trials, attributes, seeds, status, below), *below]

    def stored(self, study: StudyFacts) -> tuple[list[FrozenTrial], dict[str, Any]]:
        """A study's trials in Optuna's storage, and its attributes there."""
        assert self._database is not None
        try:
            stored = self._database.get_study_id_from_name(study.stored_name)
        except KeyError:
            return [], {}
        trials = self._database.get_all_trials(stored, deepcopy=False)
        return trials, dict(self._database.get_study_user_attrs(stored))

    def _trial(
        self, study: StudyFacts, trial: FrozenTrial, again: Mapping[int, Any]
    ) -> list[WantedRun]:
        live = self._at_work is not None
        if RECORD not in trial.user_attrs:
            return trial_runs(self.facts, study.forget, trial, again, live)
        key = (study.name, trial.number, len(again))
        if key not in self._trials:
            self._trials[key] = trial_runs(self.facts, study.forget, trial, again, live)
        return self._trials[key]

    def finals(self, study: StudyFacts) -> list[SeedRun]:
        """A study's final runs, whether they have come to an outcome or not."""
        outcomes = storage.join(self.output, study.outcomes)
        return [
            self._seed(stage, config, f"{outcome_place(outcomes, config)}.npz")
            for stage, config in read_chosen(storage.join(self.output, study.folder))
        ]

    def _seed(self, stage: str, config: RunConfig, file: str) -> SeedRun:
        outcome, began_ms = self._outcome(file, config), self._began_ms.get(file)
        if outcome is None:
            reports = self._at_work.epochs.get(file, []) if self._at_work else []
            return SeedRun(stage, config, None, file, tuple(reports), began_ms)
        read = None
        if outcome.checkpoint is not None:
            read = lambda: self._checkpoint(file, config)  # noqa: E731
        # Held for every run: without what is large.
        return SeedRun(stage, config, outcome, file, (), began_ms, read)

    def _outcome(self, file: str, config: RunConfig) -> TestOutcome | None:
        if file not in self._outcomes:
            found = read_outcome(file, config)
            if found is None:
                return None
            small = without_images(found)
            self._outcomes[file] = replace(small, checkpoint=b"" if found.checkpoint else None)
        return self._outcomes[file]

    def _checkpoint(self, file: str, config: RunConfig) -> bytes:
        outcome = read_outcome(file, config)
        assert outcome is not None and outcome.checkpoint is not None
        return outcome.checkpoint

    def finished(self, study: StudyFacts) -> StudyRecord | None:
        """The record of a study that has come to its end."""
        file = storage.join(self.output, study.record)
        record = read_study_record(file) if storage.exists(file) else None
        return record if record and record.complete else None

    def status(self, study: StudyFacts, trials: Sequence[FrozenTrial]) -> str:
        """A study's status in MLflow's words."""
        if self.finished(study):
            return "FINISHED"
        ended = [trial for trial in trials if RECORD in trial.user_attrs]
        if ended and all(trial.state == TrialState.FAIL for trial in trials):
            return "RUNNING" if self._at_work is not None else "FAILED"
        return "RUNNING" if self._at_work is not None else "KILLED"

    def _parent(
        self,
        study: StudyFacts,
        trials: Sequence[FrozenTrial],
        attributes: Mapping[str, Any],
        seeds: Sequence[SeedRun],
        status: str,
        below: Sequence[WantedRun],
    ) -> WantedRun:
        began_ms = min((run.began_ms for run in below if run.began_ms), default=None)
        ended_ms = max((run.ended_ms for run in below if run.ended_ms), default=began_ms)
        is_over = status != "RUNNING"
        record = self.finished(study)
        proof = record.proof if record else {}
        tags = {"verdict": text_of(proof["verdict"])} if proof else {}
        return WantedRun(
            run_key(study.name),
            None,
            f"forget {study.name}",
            status,
            {**self._parent_tags(study.forget, "study"), **tags},
            self.facts.params,
            self._closing(trials, attributes, seeds, proof, ended_ms or 0) if is_over else (),
            began_ms,
            ended_ms if is_over else None,
            "train",
            study_files(storage.join(self.output, study.folder)) if record else {},
        )

    def _parent_tags(self, forget: Sequence[str], stage: str) -> dict[str, str]:
        facts = self.facts
        what = f"forgets {' and '.join(forget)} of {facts.data_set}" if forget else facts.name
        return {
            **common_tags(facts, forget),
            **domain_tags(facts),
            **facts.tags,
            "stage": stage,
            "level": "study",
            "method": facts.method,
            NOTE_TAG: text_of(f"{facts.kind} {facts.name}: {what}, {facts.backbone}."),
        }

    def _closing(
        self,
        trials: Sequence[FrozenTrial],
        attributes: Mapping[str, Any],
        seeds: Sequence[SeedRun],
        proof: Mapping[str, Any],
        at_ms: int,
    ) -> tuple[Metric, ...]:
        records = [stored_record(trial) for trial in trials if RECORD in trial.user_attrs]
        add_further_seeds(records, attributes)
        n = len(records)
        values: dict[str, float] = {"n_trials": float(n)}
        goal = goal_beside(self.facts.goal, attributes)
        best = None if goal.lacks_zero_shot else best_trial(records, goal)
        if best is not None and best.mean is not None:
            values |= {f"best/val_{k}": v for k, v in best.mean.as_dict().items()}
        for stage, scores in _test_means(seeds).items():
            values |= {f"{mlflow_name(stage)}/test_{k}": v for k, v in scores.items()}
        if proof:
            values["best/distance"] = proof["distance"]
        return tuple((name, value, at_ms, n) for name, value in values.items())

    def _model(self, study: StudyFacts) -> WantedModel | None:
        if not self.finished(study):
            return None
        finals = self.finals(study)
        ended = [(seed, seed.outcome) for seed in finals if seed.outcome is not None]
        untouched = next((outcome for seed, outcome in ended if seed.stage == "zero_shot"), None)
        goal = self.facts.goal.beside(untouched.val if untouched else None, study.forget)
        # In the order that the last lines of a search have: of equal ones it is the first.
        models = [each for stage in SEARCHED for each in ended if each[0].stage == stage]
        if not models:
            return None
        looks = [outcome.val for _, outcome in models]
        chosen, outcome = models[0 if goal.lacks_zero_shot else best_seed(looks, goal)]
        if chosen.checkpoint is None:
            return None
        return WantedModel(
            study.folder,
            study.forget,
            run_key(study.name),
            chosen.checkpoint,
            storage.join(self.facts.id, *chosen.file.rsplit("/", 1)[1:]),
            chosen.config.train.seed,
            outcome.test.scores,
            untouched.test.scores if untouched else None,
        )

    # A table, or what `train.py` has trained.

    def _fixed(self) -> list[WantedRun]:
        facts = self.facts
        seeds = [
            self._seed(each.stage, each.config, storage.join(self.output, each.outcome))
            for each in facts.fixed
        ]
        is_whole = all(seed.outcome is not None for seed in seeds)
        live = "RUNNING" if self._at_work is not None else "KILLED"
        status = "FINISHED" if is_whole else live
        parent = run_key(facts.kind)
        below = configuration_runs(facts, parent, seeds, status)
        began_ms = min((run.began_ms for run in below if run.began_ms), default=None)
        ended_ms = max((run.ended_ms for run in below if run.ended_ms), default=began_ms)
        metrics = {
            f"{mlflow_name(stage)}/{name}": value
            for stage, scores in _test_means(seeds, whole=True).items()
            for name, value in scores.items()
        }
        forgets = {forget_name(each.config.forget): each.config.forget for each in facts.fixed}
        forget = next(iter(forgets.values())) if len(forgets) == 1 else ()
        top = WantedRun(
            parent,
            None,
            facts.name,
            status,
            self._parent_tags(forget, facts.kind),
            facts.params,
            tuple((k, v, ended_ms or 0, 0) for k, v in metrics.items()) if status != live else (),
            began_ms,
            ended_ms if status != "RUNNING" else None,
            "train",
        )
        return [top, *below]


def _test_means(seeds: Sequence[SeedRun], whole: bool = False) -> dict[str, dict[str, float]]:
    """Test scores by stage, means over seeds and forget sets.

    Args:
        seeds: The runs.
        whole: Whether to leave out stages of which runs are missing.
    """
    stages = dict.fromkeys(seed.stage for seed in seeds)
    found = {}
    for stage in stages:
        own = [seed for seed in seeds if seed.stage == stage]
        outcomes = [seed.outcome for seed in own if seed.outcome is not None]
        if outcomes and (not whole or len(outcomes) == len(own)):
            by_run = [metrics_of_test(outcome) for outcome in outcomes]
            names = ("mem", "for", "h", "domain_accuracy")
            found[stage] = {k: mean(each[f"test/{k}"] for each in by_run) for k in names}
    return found
