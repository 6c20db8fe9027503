"""The final runs of a study: trained once more and then shown the test split.

This is the first and only time that test images are read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adu import storage
from adu.data.manifest import Manifest
from adu.evaluation.attention import shown_domains
from adu.evaluation.evaluate import scores_of
from adu.evaluation.metrics import Scores
from adu.methods.baseline import BaselineConfig, PromptConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes, outcome_place, read_outcome
from pipeline.executors.run import Run
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.studies.records import FinalRecord, StudyRecord
from pipeline.studies.space import Space, configure, defaults

ZERO_SHOT = "zero_shot"


class ZeroShot:
    """The untouched model's outcome: one for a job, since it does not depend on what is forgotten.

    It is kept in the folder ``zero_shot`` of the output.

    Args:
        manifest: The images.
        train: How runs are trained, which does not matter to it.
        output: Folder or URL of the job's output.
    """

    def __init__(self, manifest: Manifest, train: TrainConfig, output: str) -> None:
        self._names = manifest.classes, manifest.domains
        forget = manifest.domains[:1]
        self._config = RunConfig(forget=forget, method=ZeroShotConfig(), train=train)
        self._folder = storage.join(output, ZERO_SHOT)
        self._outcome: TestOutcome | None = None
        self._failure: str | None = None
        self._waiting: list[Callable[[], None]] = []
        self._begun = False

    def runs(self, study: str, context: Mapping[str, Any]) -> list[Run]:
        """The run, for the first study that asks; the others wait for it."""
        if self._begun:
            return []
        self._begun = True
        return [fixed_run(study, ZERO_SHOT, self._config, context, self._folder)]

    def tell(self, outcome: TestOutcome | None, failure: str) -> None:
        """The run has come to its outcome, or has failed."""
        self._outcome, self._failure = outcome, failure
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def then(self, call: Callable[[], None]) -> None:
        """Calls once it is known, now or later."""
        if self._outcome is None and self._failure is None:
            self._waiting.append(call)
        else:
            call()

    def add_to(
        self,
        run: Run,
        config: RunConfig,
        outcomes: dict[str, TestOutcome],
        failures: dict[str, str],
    ) -> None:
        """Puts it down as a study's own run, with its forget set, where that would have left it."""
        if self._outcome is None:
            failures[run.place] = self._failure or ""
        else:
            outcome = for_forget_set(self._outcome, config.forget, *self._names)
            # A study that is extended has it already.
            if read_outcome(run.outcome_file, config) is None:
                data = outcome_bytes(config, outcome)
                patiently(run.place, lambda: storage.write_bytes(run.outcome_file, data))
            outcomes[run.place] = outcome


def for_forget_set(
    outcome: TestOutcome, forget: Sequence[str], classes: Sequence[str], domains: Sequence[str]
) -> TestOutcome:
    """What an untouched model's outcome is for another forget set."""
    assert outcome.val_counts_2CD is not None
    val, test = (
        scores_of(counts_2CD, forget, classes, domains)
        for counts_2CD in (outcome.val_counts_2CD, outcome.test.counts_2CD)
    )
    attention = outcome.attention and outcome.attention.only(shown_domains(forget, domains))
    return replace(outcome, val=val, test=replace(outcome.test, scores=test), attention=attention)


def fixed_run(
    study: str, stage: str, config: RunConfig, context: Mapping[str, Any], folder: str
) -> Run:
    """A tested run of a configuration that is known beforehand.

    Args:
        study: What it belongs to.
        stage: What it stands for.
        config: The configuration; the seed is part of it.
        context: Model and images, as plain values.
        folder: Folder or URL of what is kept of runs; equal ones have the same file there.
    """
    return Run(
        study,
        f"{stage}-{config.train.seed}",
        stage,
        config.model_dump(mode="json", by_alias=True),
        context,
        outcome_place(folder, config),
        tested=True,
    )


def final_configs(
    base: RunConfig,
    space: Space,
    best: Mapping[str, Any],
    seeds: Sequence[int],
    best_seed: int,
    beside: Container[str],
    paper: RunConfig | None = None,
) -> list[tuple[str, RunConfig]]:
    """The stages that a study is judged by and their configurations, the longest first.

    Args:
        base: The run's configuration apart from what is searched.
        space: What was searched, with its defaults.
        best: The best trial's parameters.
        seeds: Every stage that trains is run once with each.
        best_seed: With which the search has seen the best configuration do best. It is run again
            apart from the others, for its model: as a figure it would be too good.
        beside: The stages that it is compared with.
        paper: The paper's own configuration, where the defaults are another recipe's.
    """
    first = configure(base, defaults(space))
    chosen = configure(base, best)
    others = {"paper_defaults": first, "baseline": _baseline(first), "paper": paper}
    stages = {"best": chosen} | {
        stage: run for stage, run in others.items() if run is not None and stage in beside
    }
    seeded = [(stage, seeded_run(run, seed)) for stage, run in stages.items() for seed in seeds]
    again = ("best_again", seeded_run(chosen, best_seed))
    return [*seeded, again, (ZERO_SHOT, first.model_copy(update={"method": ZeroShotConfig()}))]


def seeded_run(run: RunConfig, seed: int) -> RunConfig:
    """A configuration with another seed."""
    return run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})})


def final_records(
    finals: Sequence[tuple[Run, RunConfig]],
    outcomes: Mapping[str, TestOutcome],
    failures: Mapping[str, str],
) -> dict[str, FinalRecord]:
    """What came of each stage; one of which every run has failed has no scores.

    Args:
        finals: The final runs and their configurations.
        outcomes: By the runs' places.
        failures: Why runs came to no outcome, by their places.
    """
    records: dict[str, FinalRecord] = {}
    for stage in dict.fromkeys(run.stage for run, _ in finals):
        own = [(run, config) for run, config in finals if run.stage == stage]
        ended = [(config, outcomes[run.place]) for run, config in own if run.place in outcomes]
        errors = {c.train.seed: failures[r.place] for r, c in own if r.place in failures}
        tests = [outcome.test.scores for _, outcome in ended]
        looks = [outcome.val for _, outcome in ended]
        records[stage] = FinalRecord(
            stage,
            own[0][1],
            mean_scores(looks) if ended else None,
            mean_scores(tests) if ended else None,
            tuple(config.train.seed for config, _ in ended),
            tuple(tests),
            errors,
            tuple(looks),
        )
    return records


def final_failures(record: StudyRecord) -> list[str]:
    """What has failed of a study's final runs, a line each."""
    name = forget_name(record.forget)
    return [
        f"{name}: final run {final.label}, seed {seed}: {error}"
        for final in record.finals.values()
        for seed, error in final.errors.items()
    ]


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Scores averaged over runs: H is the mean of the runs' H (the paper's way)."""
    n = len(scores)
    return Scores(
        mem=sum(s.mem for s in scores) / n,
        for_=sum(s.for_ for s in scores) / n,
        h=sum(s.h for s in scores) / n,
        accuracy_by_domain={
            domain: sum(s.accuracy_by_domain[domain] for s in scores) / n
            for domain in scores[0].accuracy_by_domain
        },
        n_by_domain=scores[0].n_by_domain,
    )


def _baseline(first: RunConfig) -> RunConfig:
    """The Baseline with the prompts that the defaults have."""
    shared: dict[str, Any] = {}
    if isinstance(first.method, PromptConfig):
        shared = {name: getattr(first.method, name) for name in PromptConfig.model_fields}
    return first.model_copy(update={"method": BaselineConfig(**shared)})
