"""Where the class token looks: against nn.MultiheadAttention's own weights."""

import pytest
import torch

from adu.evaluation.attention import class_attention, sample_attention
from adu.evidence.references import untouched
from adu.evidence.subject import copied
from adu.methods import build_method
from adu.training.config import RunConfig
from tests.tiny import CLASSES, tiny_context

IMAGES_BCHW = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("attention"))


def build(context, method):
    run = RunConfig.model_validate({"forget": ["sketch"], "method": method})
    torch.manual_seed(0)
    return build_method(run.method, context.backbone, context.task(run.forget))


@pytest.mark.parametrize("method", ["zero_shot", "baseline", "adu"])
def test_it_is_the_last_blocks_attention(context, method):
    model = build(context, method)
    block = context.backbone.tower.visual.transformer.resblocks[-1]
    images_BCHW = torch.rand(3, 3, 32, 32)
    found_BHW = class_attention(model, images_BCHW)
    with torch.no_grad():
        normed = []
        hook = block.ln_1.register_forward_hook(lambda _, __, output: normed.append(output))
        model(images_BCHW)
        hook.remove()
        # The module's own computation, heads averaged.
        weights_BTT = block.attn(normed[0], normed[0], normed[0], need_weights=True)[1]
    expected_BHW = weights_BTT[:, 0, 1:17].reshape(3, 4, 4)
    torch.testing.assert_close(found_BHW, expected_BHW)
    # Prompts take their share of what the token looks at.
    assert (found_BHW.sum(dim=(1, 2)) < 1).all()


def test_it_is_that_of_the_weights_that_a_method_has_trained(context):
    student = build(context, {"name": "distilled", "teacher": "read in training alone"})
    with torch.no_grad():
        for weight in student.trainable().values():
            weight.add_(0.1 * torch.randn_like(weight))
    plain = copied(context.backbone)
    plain.clip.load_state_dict(student.open_clip_weights(), strict=False)
    expected_BHW = class_attention(untouched(plain, student.task), IMAGES_BCHW)
    torch.testing.assert_close(class_attention(student, IMAGES_BCHW), expected_BHW)
    assert not torch.allclose(
        class_attention(build(context, "zero_shot"), IMAGES_BCHW), expected_BHW
    )


def test_samples_are_of_a_kept_and_of_the_forgotten_domain(context):
    found = sample_attention(build(context, "adu"), context, ("clipart", "sketch"))
    assert found.domain_N == ("clipart",) * 3 + ("sketch",) * 3
    assert found.class_N == CLASSES * 2
    assert found.images_NHWC.shape == (6, 32, 32, 3)
    assert found.attention_NHW.shape == (6, 4, 4)
    # The images are those of the data: the domain of the sketches is the brightest.
    assert found.images_NHWC[3:].mean() > found.images_NHWC[:3].mean() + 50
