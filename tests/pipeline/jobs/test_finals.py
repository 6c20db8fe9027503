"""The untouched model is tested once a job, and seen by each study with its own forget set."""

import pytest

from adu.evaluation.evaluate import evaluate_images, evaluate_test
from adu.evaluation.metrics import rescored
from adu.methods import build_method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.jobs.finals import ZeroShot
from tests.tiny import DOMAINS, tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("finals"), shots=1)


def test_scores_of_an_untouched_model_are_those_of_its_own_test(context):
    first, other = ("clipart",), ("photo", "sketch")
    methods = [
        build_method(ZeroShotConfig(), context.backbone, context.task(f)) for f in (first, other)
    ]
    seen, own = (
        evaluate_test(method, context, forget).scores
        for method, forget in zip(methods, (first, other), strict=True)
    )
    assert rescored(seen, other) == own
    val = [evaluate_images(methods[0], context, context.val, f) for f in (first, other)]
    assert rescored(val[0], other) == val[1]


def test_the_first_study_runs_it_and_the_others_wait(tmp_path):
    shared = ZeroShot(DOMAINS, TrainConfig(), str(tmp_path))
    (run,) = shared.runs("sketch", {})
    assert run.outcome_file.startswith(f"{tmp_path}/zero_shot/")
    assert shared.runs("photo", {}) == []
    told = []
    shared.then(lambda: told.append("photo"))
    assert not told
    shared.tell(None, "a reason")
    shared.then(lambda: told.append("sketch"))
    assert told == ["photo", "sketch"]
    failures = {}
    config = RunConfig(forget=("photo",), method=ZeroShotConfig())
    shared.add_to(run, config, {}, failures)
    assert failures == {run.place: "a reason"}
