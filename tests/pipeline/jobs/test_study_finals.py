"""A study's final runs: references first, the best when it is known, and an end when all is in."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from adu import storage
from adu.evidence.proof import ProofConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.outcome_file import outcome_bytes
from pipeline.jobs.finals import ZeroShot
from pipeline.jobs.study_finals import StudyFinals
from pipeline.studies.space import Parameter
from tests.pipeline.jobs.test_finals import outcome_of
from tests.tiny import tiny_context

FORGET = ("sketch",)
SPACE = {"method.gamma": Parameter(low=0.1, high=30, log=True, default=3.0)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    context = tiny_context(tmp_path_factory.mktemp("study-finals"), shots=1)
    return context.manifest, outcome_of(context, FORGET)


@pytest.fixture
def made(outcome, tmp_path):
    """Final runs of a study, the sources that they have queued, and who was told of their end."""
    sources, ended = [], []

    def add(source):
        if source not in sources:
            sources.append(source)

    finals = StudyFinals(
        SimpleNamespace(
            config=SimpleNamespace(final=SimpleNamespace(seeds=[1, 2]), prove=ProofConfig()),
            paper=lambda _: None,
        ),
        SimpleNamespace(
            finals=lambda name: str(tmp_path / name),
            study_pictures=lambda name: str(tmp_path),
            check=lambda: None,
        ),
        SimpleNamespace(add_fixed=add, add_spare=add),
        ZeroShot(outcome[0], TrainConfig(), str(tmp_path)),
        SimpleNamespace(
            name="sketch",
            spec=SimpleNamespace(base=RunConfig(forget=FORGET), space=SPACE, context={}),
        ),
        ended.append,
    )
    return finals, sources, ended


def record_of(gamma):
    best = SimpleNamespace(params={"method.gamma": gamma})
    return SimpleNamespace(best=best, forget=FORGET, finals={})


def work(source, outcome, checkpoint=None):
    """Does all runs of a source; gives their names."""
    names = []
    while source.wants:
        run = source.propose()
        names.append(run.name)
        config = RunConfig.model_validate(run.config)
        left = replace(outcome[1], checkpoint=checkpoint)
        storage.write_bytes(run.outcome_file, outcome_bytes(config, left))
        source.end(run, SimpleNamespace(state="complete", error=None))
    source.on_end(source)
    return names


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_it_ends_once_the_references_and_the_best_are_tested(made, outcome, order):
    finals, sources, ended = made
    finals.test_references()
    assert len(sources) == 1, "the references do not wait for the race"
    finals.test_best(record_of(5.0))
    assert [stage for stage, _ in finals.configs][:2] == ["best", "best"]
    work(sources[order[0]], outcome)
    assert not ended
    work(sources[order[1]], outcome)
    assert ended == [finals]
    stages = {"best", "paper_defaults", "baseline", "zero_shot"}
    assert {name for name, final in finals.record.finals.items() if final.test} == stages
    assert finals.shown().keys() == stages


def test_defaults_that_are_best_are_not_run_again(made, outcome):
    """Nothing is left to run for the best then, and that is known before a reference is tested."""
    finals, sources, ended = made
    finals.test_best(record_of(3.0))
    assert work(sources[1], outcome) == []
    assert not ended
    assert "zero_shot-0" in work(sources[0], outcome)
    assert ended == [finals]
    assert finals.record.finals["best"].test == finals.record.finals["paper_defaults"].test
    assert finals.record.finals["zero_shot"].test


def test_references_that_idle_executors_have_tested_are_not_queued_again(made, outcome):
    finals, sources, ended = made
    work(sources.pop(), outcome)
    finals.test_references()
    assert sources == []
    finals.test_best(record_of(5.0))
    work(sources[0], outcome)
    assert ended == [finals]


def test_a_study_without_a_best_leaves_its_references_but_for_what_others_need(made, outcome):
    finals, sources, ended = made
    finals.drop()
    assert work(sources[0], outcome) == ["zero_shot-0"]
    assert not ended


def test_the_best_models_are_what_is_proved_also_if_they_are_the_defaults(made, outcome):
    finals, sources, _ = made
    finals.test_best(record_of(3.0))
    work(sources[1], outcome)
    assert finals.proof() is None, "nothing was trained yet"
    work(sources[0], outcome, checkpoint=b"weights")
    proof = finals.proof()
    assert [run.train.seed for run, _ in proof.best] == [1, 2]
    assert all(storage.exists(file) for _, file in proof.best)
