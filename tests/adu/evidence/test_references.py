"""References: what each was shown, and that the one that knows nothing knows nothing."""

import pytest
import torch

from adu.errors import UserError
from adu.evidence import references
from adu.evidence.references import knows_nothing, never_saw, reference_run, train_reference
from adu.methods.baseline import BaselineConfig
from tests.adu.evidence.subjects import FORGET, tiny_run
from tests.tiny import tiny_backbone, tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("references"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("never_shown", {"clipart", "photo"}),
        ("baseline", {"clipart", "photo", "sketch"}),
        ("forget_only", {"clipart", "photo", "sketch"}),
    ],
)
def test_each_is_trained_on_what_its_name_says(context, monkeypatch, name, shown):
    seen = []

    class Watched(references.Trainer):
        def epochs(self):
            seen.append({self.context.domains[d] for d in self.context.train.domain_N.tolist()})
            return super().epochs()

    monkeypatch.setattr(references, "Trainer", Watched)
    run = tiny_run({"name": "adu", "n_ctx": 3, "depth": 2})
    model = train_reference(name, run, context)
    assert seen == [shown]
    assert len(context.train) == 3 * 3 * 2  # as it was
    assert model.task.forget == FORGET and model.task.domains == context.domains
    method = reference_run(name, run).method
    if name == "never_shown":
        assert method == run.method
    else:
        memorize_weight = float(name == "baseline")
        assert method == BaselineConfig(n_ctx=3, depth=2, memorize_weight=memorize_weight)


def test_every_method_can_be_trained_without_the_domain(context):
    model = train_reference("never_shown", tiny_run("null_space"), context)
    assert not model.removed_ER.any()


def test_shuffled_weights_are_the_same_ones_elsewhere(context):
    before = [p.clone() for p in context.backbone.clip.visual.parameters()]
    model = knows_nothing(context.backbone, context.task(FORGET), seed=0)
    shuffled = list(model.backbone.clip.visual.parameters())
    assert all(
        torch.equal(a.flatten().sort()[0], b.flatten().sort()[0])
        for a, b in zip(before, shuffled, strict=True)
    )
    assert not all(torch.equal(a, b) for a, b in zip(before, shuffled, strict=True))
    now = context.backbone.clip.visual.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_a_model_that_never_saw_it_must_see_the_same_pixels(context, tmp_path):
    other = tiny_backbone(tmp_path / "other", seed=1)
    model = never_saw(str(other), context, context.task(FORGET))
    assert not torch.equal(model.task.text_CE, context.text_CE)
    vision = {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    larger = tiny_backbone(tmp_path / "larger", vision_cfg=vision)
    with pytest.raises(UserError, match="prepares images in another way"):
        never_saw(str(larger), context, context.task(FORGET))
