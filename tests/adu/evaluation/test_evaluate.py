"""What evaluation computes, and what it need not compute again."""

import pytest
import torch

from adu.evaluation.evaluate import evaluate_test
from adu.evidence.references import knows_nothing
from adu.methods import build_method
from adu.training.config import RunConfig
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


def built(context, name, forget):
    run = RunConfig.model_validate({"forget": [forget], "method": name})
    return build_method(run.method, context.backbone, context.task(run.forget))


@pytest.mark.parametrize(("name", "passes"), [("zero_shot", 1), ("baseline", 2)])
def test_the_untouched_model_sees_the_test_images_once_for_all_forget_sets(
    context, monkeypatch, name, passes
):
    models = {forget: built(context, name, forget) for forget in ("sketch", "photo")}
    seen = []
    for model in models.values():
        whole = model.image_features
        monkeypatch.setattr(
            model, "image_features", lambda images, whole=whole: seen.append(1) or whole(images)
        )
    found = {forget: evaluate_test(model, context, [forget]) for forget, model in models.items()}
    assert len(seen) == passes
    for forget, result in found.items():
        kept = [accuracy for d, accuracy in result.scores.accuracy_by_domain.items() if d != forget]
        assert result.scores.mem == pytest.approx(sum(kept) / 2)
        assert result.scores.for_ == pytest.approx(1 - result.scores.accuracy_by_domain[forget])


def test_what_is_frozen_but_learned_is_not_taken_for_the_untouched_model(context):
    model = built(context, "baseline", "sketch").requires_grad_(False)
    first = evaluate_test(model, context, ["sketch"]).features_NE
    for prompt in model.prompts.tokens:
        prompt += torch.randn(prompt.shape, generator=torch.Generator().manual_seed(0))
    assert abs(evaluate_test(model, context, ["sketch"]).features_NE - first).max() > 1e-3


def test_another_backbone_is_not_taken_for_the_untouched_model(context):
    untouched = built(context, "zero_shot", "sketch")
    blank = knows_nothing(context.backbone, context.task(("sketch",)), seed=0)
    first, other = (evaluate_test(each, context, ["sketch"]) for each in (untouched, blank))
    assert abs(first.features_NE - other.features_NE).max() > 1e-3
