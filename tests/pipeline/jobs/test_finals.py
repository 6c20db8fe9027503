"""The untouched model is tested once a job, and seen by each study with its own forget set."""

import pytest

from adu.evaluation.attention import sample_attention
from adu.evaluation.evaluate import count_images, evaluate_test, scores_of
from adu.methods import build_method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.executors.outcome_file import TestOutcome
from pipeline.jobs.finals import ZeroShot, for_forget_set
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("finals"), shots=1)


def outcome_of(context, forget):
    method = build_method(ZeroShotConfig(), context.backbone, context.task(forget))
    counts = count_images(method, context, context.val)
    val = scores_of(counts, forget, context.classes, context.domains)
    attention = sample_attention(method, context, context.domains)
    test = evaluate_test(method, context, forget)
    return TestOutcome(val, test, 0.5, None, attention, val_counts_2CD=counts)


@pytest.mark.parametrize("forget", [("photo", "sketch"), ("sketch:cup", "photo:star")])
def test_an_untouched_models_outcome_is_that_of_every_forget_set(context, forget):
    names = context.classes, context.domains
    seen = for_forget_set(outcome_of(context, ("clipart",)), forget, *names)
    own = outcome_of(context, forget)
    assert (seen.val, seen.test.scores) == (own.val, own.test.scores)
    assert seen.attention.domain_N == ("clipart",) * 3 + ("photo",) * 3


def test_the_first_study_runs_it_and_the_others_wait(context, tmp_path):
    shared = ZeroShot(context.manifest, TrainConfig(), str(tmp_path))
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
