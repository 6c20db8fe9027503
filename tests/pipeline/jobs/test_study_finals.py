"""A study's final runs: what is run, and what is known when all of them have ended."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from adu import storage
from adu.evidence.proof import ProofConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.outcome_file import outcome_bytes
from pipeline.jobs.config import FinalConfig
from pipeline.jobs.finals import ZeroShot
from pipeline.jobs.study_finals import StudyFinals
from pipeline.studies.goal import Goal
from pipeline.studies.records import TrialRecord
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
def begin(outcome, tmp_path):
    """Queues a study's final runs; gives them, their source, and a list of what has ended."""

    def begin_with(gamma, luck=-0.1, **final):
        sources, ended = [], []
        best = TrialRecord(4, {"method.gamma": gamma}, 1, "complete", outcome[1].val, 1.0, 1.0)
        # The trials' own seed is 0.
        best.again[1000] = replace(outcome[1].val, h=outcome[1].val.h + luck)
        finals = StudyFinals(
            SimpleNamespace(
                config=SimpleNamespace(
                    final=FinalConfig(seeds=(1, 2), **final), prove=ProofConfig()
                ),
                paper=lambda _: None,
            ),
            SimpleNamespace(
                finals=lambda name: str(tmp_path / name),
                study_pictures=lambda name: str(tmp_path),
                check=lambda: None,
            ),
            SimpleNamespace(add_fixed=sources.append),
            ZeroShot(outcome[0], TrainConfig(), str(tmp_path)),
            SimpleNamespace(
                name="sketch",
                spec=SimpleNamespace(base=RunConfig(forget=FORGET), space=SPACE, context={}),
            ),
            SimpleNamespace(best=best, forget=FORGET, finals={}, goal=Goal()),
            ended.append,
        )
        (source,) = sources
        return finals, source, ended

    return begin_with


def work(source, outcome, checkpoint=None, val_h=lambda seed: 0.5):
    """Does all runs of a source; gives their names."""
    names = []
    while source.wants:
        run = source.propose()
        names.append(run.name)
        config = RunConfig.model_validate(run.config)
        val = replace(outcome[1].val, h=val_h(config.train.seed))
        left = replace(outcome[1], checkpoint=checkpoint, val=val)
        storage.write_bytes(run.outcome_file, outcome_bytes(config, left))
        source.end(run, SimpleNamespace(state="complete", error=None))
    source.on_end(source)
    return names


def test_the_best_is_tested_beside_what_it_is_compared_with(begin, outcome):
    finals, source, ended = begin(5.0)
    assert [stage for stage, _ in finals.configs][:2] == ["best", "best"]
    names = work(source, outcome)
    assert names[0] == "zero_shot-0" and {"best-1", "baseline-2"} < set(names)
    assert ended == [finals]
    stages = {"best", "paper_defaults", "baseline", "zero_shot"}
    tested = {name for name, final in finals.record.finals.items() if final.test}
    assert tested == {*stages, "best_again"}
    assert finals.shown().keys() == stages


@pytest.mark.parametrize(
    ("compare", "stages"),
    [
        ((), set()),
        (("baseline",), {"baseline"}),
        # The search starts from the paper's own here.
        (("paper", "defaults"), {"paper_defaults"}),
    ],
)
def test_it_is_compared_with_what_is_asked_for(begin, outcome, compare, stages):
    finals, source, _ = begin(5.0, compare=compare)
    work(source, outcome)
    assert finals.record.finals.keys() == {"best", "best_again", "zero_shot"} | stages


def test_defaults_that_are_best_are_run_once(begin, outcome):
    finals, source, _ = begin(3.0)
    assert len(work(source, outcome)) == 6
    found = finals.record.finals
    assert found["best"].test == found["paper_defaults"].test


def test_what_stands_for_a_stage_is_the_best_seed_on_validation_images(begin, outcome):
    finals, source, _ = begin(5.0)
    work(source, outcome, val_h=lambda seed: 0.2 + 0.1 * seed)
    assert finals.shown()["best"].val.h == finals.shown()["baseline"].val.h == pytest.approx(0.4)
    assert [look.h for look in finals.record.finals["best"].val_by_seed] == pytest.approx(
        [0.3, 0.4]
    )


@pytest.mark.parametrize(("luck", "seed"), [(-0.1, 0), (0.1, 1000)])
def test_the_searchs_best_seed_is_trained_again_for_its_model_and_not_for_the_mean(
    begin, outcome, luck, seed
):
    finals, source, _ = begin(5.0, luck)
    assert f"best_again-{seed}" in work(source, outcome, val_h=lambda its: 0.9 - its % 1000 / 10)
    assert finals.record.finals["best"].seeds == (1, 2)
    assert finals.record.finals["best_again"].seeds == (seed,)
    assert finals.record.finals["best"].val.h == pytest.approx(0.75)
    assert finals.shown()["best"].val.h == pytest.approx(0.9), "pictures show what is handed out"


def test_the_best_models_are_what_is_proved_also_if_they_are_the_defaults(begin, outcome):
    finals, source, _ = begin(3.0)
    assert finals.proof() is None, "nothing was trained yet"
    work(source, outcome, checkpoint=b"weights")
    proof = finals.proof()
    assert [run.train.seed for run, _ in proof.best] == [1, 2, 0]
    assert all(storage.exists(file) for _, file in proof.best)
