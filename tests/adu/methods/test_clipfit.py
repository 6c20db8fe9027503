"""CLIPFit sets free what its paper does, and leaves the shared backbone alone."""

import pytest
import torch
import torch.nn.functional as F

from adu.methods import build_method
from adu.methods.base import Task
from adu.methods.clipfit import ClipFitConfig
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone
from tests.tiny import CLASSES, DOMAINS, MODEL, tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tiny_backbone(tmp_path_factory.mktemp("model"))
    return load_backbone(BackboneConfig(name=str(folder)), torch.device("cpu"))


@pytest.fixture
def model(backbone):
    template = "a photo of a {class}."
    text_CE = backbone.text_features(CLASSES, template)
    return build_method(
        ClipFitConfig(), backbone, Task(CLASSES, DOMAINS, ("sketch",), text_CE, template)
    )


IMAGES_BCHW = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_starts_as_the_untouched_model(backbone, model):
    # With gradients torch may choose other kernels, which differ in the last bit.
    with torch.no_grad():
        features_BE = F.normalize(backbone.clip.encode_image(IMAGES_BCHW), dim=-1)
        output = model(IMAGES_BCHW)
    assert torch.equal(output.features_BE, features_BE)
    torch.testing.assert_close(model.text_features(), model.task.text_CE)
    terms = model.losses(output, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 2]))
    assert terms["text"].item() == pytest.approx(0, abs=1e-6)
    assert terms["norm"].item() == 0


def test_it_tunes_second_feed_forward_biases_of_text_and_layer_norms_of_images(model):
    n_text, n_image = MODEL["text_cfg"]["layers"], MODEL["vision_cfg"]["layers"]
    names = {name.replace("/", ".") for name in model.tuned}
    biases = {f"transformer.resblocks.{i}.mlp.c_proj.bias" for i in range(n_text)}
    norms = {"visual.ln_pre", "visual.ln_post"}
    norms |= {f"visual.transformer.resblocks.{i}.ln_{j}" for i in range(n_image) for j in (1, 2)}
    assert names == biases | {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}


def test_tuning_changes_it_and_not_the_backbone(backbone, model):
    before_BE = backbone.clip.encode_image(IMAGES_BCHW)
    with torch.no_grad():
        for parameter in model.tuned.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    output = model(IMAGES_BCHW)
    assert torch.equal(backbone.clip.encode_image(IMAGES_BCHW), before_BE)
    assert not torch.allclose(model.text_features(), model.task.text_CE)
    terms = model.losses(output, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 2]))
    cosine = (model.text_features().double() * model.task.text_CE.double()).sum(dim=1)
    frozen = {k: v.double() for k, v in backbone.clip.named_parameters()}
    tuned = {k.replace("/", "."): v.double() for k, v in model.tuned.items()}
    changes = [
        ((tuned[k] - frozen[k]) ** 2).mean().item() for k in tuned if k.startswith("visual.")
    ]
    assert terms["text"].item() == pytest.approx((1 - cosine).mean().item(), rel=1e-4)
    assert terms["norm"].item() == pytest.approx(sum(changes) / len(changes), rel=1e-5)
    expected = terms["memorize"] + terms["forget"] + 8 * terms["text"] + terms["norm"]
    torch.testing.assert_close(terms["total"], expected)
