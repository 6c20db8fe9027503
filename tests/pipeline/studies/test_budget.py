"""Budgets of a whole search: shared out, and what a converged study leaves goes to others."""

from __future__ import annotations

import pytest
from ray.tune.search import Searcher

from pipeline.studies.budget import BudgetConfig, JobBudget
from pipeline.studies.study import CONVERGED_TRIALS, Study
from tests.pipeline.studies.made_up import EPOCHS, Queue, make_spec, result


@pytest.fixture
def job(tmp_path):
    def make(names="abc", budget=(), gpus=0.0, **config):
        shared = JobBudget(BudgetConfig(**dict(budget)), gpus, len(names))
        studies = [Study(make_spec(tmp_path, name=name, **config)) for name in names]
        for study in studies:
            shared.add(study)
        return studies

    return make


def run_all(studies, h_of=lambda study, n: 0.5) -> dict[str, int]:
    """Runs trials one at a time to the end; gives how many each study had."""
    queue, n = Queue(*studies), 0
    while isinstance(config := queue.suggest(str(n)), dict):
        queue.started(str(n))
        run = config["run"]
        queue.on_trial_complete(str(n), result(EPOCHS, h_of(run.study, run.number)))
        n += 1
    assert queue.suggest("end") == Searcher.FINISHED
    return {study.name: len(study.records) for study in studies}


def test_a_budget_below_the_studies_own_is_shared_out(job):
    assert run_all(job(budget={"trials": 7}, trials=8)) == {"a": 3, "b": 2, "c": 2}


def test_what_a_converged_study_leaves_goes_to_those_after_it(job):
    rising = {"a": lambda n: 0.9 - n / 100, "b": lambda n: 0.1 + n / 100, "c": lambda n: 0.5}
    studies = job(budget={"trials": 24}, trials=8, patience=3)
    n_trials = run_all(studies, lambda study, n: rising[study](n))
    # The first converges after four trials; the second finds a better one with every trial.
    assert n_trials == {"a": 4, "b": 12, "c": 4}
    assert [study.ended_by for study in studies] == ["patience", "trials", "patience"]


def test_more_than_its_own_trials_are_for_a_study_that_has_not_converged(job):
    n_trials = run_all(job("a", budget={"trials": 100}, trials=4))
    assert n_trials == {"a": 1 + CONVERGED_TRIALS}


def test_time_and_gpu_hours_end_all_studies(job, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.studies.budget.time.monotonic", lambda: clock[0])

    def tick(study, n):
        clock[0] += 10
        return 0.5

    studies = job(budget={"wall_time_s": 35})
    assert sum(run_all(studies, tick).values()) <= 4 + len(studies)
    assert {study.ended_by for study in studies} == {"the search's budget"}


def test_gpu_hours_are_those_of_the_trials(job):
    (study,) = job("a", budget={"gpu_hours": 1.0}, gpus=4.0)
    queue = Queue(study)
    queue.run("0")
    study.records[0].wall_s = 900.0
    assert study.is_over and study.ended_by == "the search's budget"
