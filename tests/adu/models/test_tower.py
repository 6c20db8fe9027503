"""Every kind of image tower, opened for prompts, is still the tower that it was."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from adu.data.decoded import ImageTransform
from adu.errors import UserError
from adu.methods import METHODS
from adu.methods.adu import Adu, AduConfig
from adu.methods.base import Task
from adu.methods.baseline import BaselineConfig
from adu.models.backbone import Backbone
from adu.models.prompted import prompted_features
from adu.models.towers import open_tower, promptable_architectures

OWN = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
# timm's smallest of each kind; nothing is downloaded.
VISIONS = {
    "class token": OWN,
    "class token, pooled by mean": OWN | {"pool_type": "avg"},
    "class token, norm after pooling": OWN | {"final_ln_after_pool": True},
    "class token, attention pooling": OWN | {"attentional_pool": True, "attn_pooler_heads": 2},
    "no ln_pre": OWN | {"no_ln_pre": True},
    "timm, class token": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": ""},
    "timm, mean": {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": "linear"},
    "SigLIP": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "EVA02": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": ""},
    "EVA": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map"},
}


@pytest.fixture(params=VISIONS, scope="module")
def visual(request):
    values = {"image_size": 160, **VISIONS[request.param]}
    torch.manual_seed(0)
    visual = _build_vision_tower(16, CLIPVisionCfg(**values)).eval().requires_grad_(False)
    # What starts at zero, such as SigLIP's attention bias, would hide a mistake.
    for parameter in visual.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return visual


@pytest.fixture(scope="module")
def tower(visual):
    return open_tower(visual, "test")


@pytest.fixture
def images_BCHW(visual):  # noqa: N802 - a fixture is called like what it gives
    trunk = getattr(visual, "trunk", visual)
    size = trunk.patch_embed.img_size if hasattr(trunk, "patch_embed") else visual.image_size
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def no_prompts(*_):
    raise AssertionError


def test_without_prompts_it_is_the_untouched_tower_exactly(visual, tower, images_BCHW):
    assert torch.equal(
        prompted_features(tower, images_BCHW, None, no_prompts, 0), plain(visual, images_BCHW)
    )


def test_prompts_have_no_place_in_the_image_but_have_a_say(visual, tower, images_BCHW):
    first_BPW, second_BPW = torch.randn(2, 2, 3, tower.width)
    order = torch.tensor([2, 0, 1])

    def features(first_BPW, second_BPW):
        return prompted_features(tower, images_BCHW, first_BPW, lambda *_: second_BPW, 2)

    found_BE = features(first_BPW, second_BPW)
    reordered_BE = features(first_BPW[:, order], second_BPW[:, order])
    torch.testing.assert_close(found_BE, reordered_BE, atol=1e-4, rtol=1e-4)
    assert (found_BE - plain(visual, images_BCHW)).abs().max() > 1e-3


def test_a_prompt_that_repeats_a_patch_is_a_second_patch(tower, images_BCHW):
    """Prompts enter before the norm ahead of the blocks, as tokens like any other."""
    tokens_BTW = tower.embed(images_BCHW, torch.ones(2, 1, tower.width))
    n_image_tokens = tower.embed(images_BCHW, None).shape[1]
    assert tokens_BTW.shape[1] == n_image_tokens + 1
    ahead = getattr(tower.visual, "ln_pre", None) or tower.trunk.norm_pre
    torch.testing.assert_close(tokens_BTW[:, -1], ahead(torch.ones(2, tower.width)))


def test_adu_trains_on_it_and_computes_no_gradient_for_a_frozen_weight(visual, tower, images_BCHW):
    """Every leaf that the backward pass writes a gradient into is counted."""
    backbone = sigmoid_backbone(visual, tower)
    width = plain(visual, images_BCHW).shape[1]
    task = Task(("cup", "fish"), ("photo", "sketch"), ("sketch",), torch.eye(2, width))
    model = Adu(AduConfig(n_ctx=2, depth=2, instapg_layer=1), backbone, task)
    output = model(images_BCHW)
    losses = model.losses(output, torch.tensor([0, 1]), torch.tensor([0, 1]))
    trained = set(model.parameters())
    assert leaves_with_gradients(losses["total"]) == trained
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in trained)
    assert not any(parameter.grad is not None for parameter in visual.parameters())
    assert len(list(visual.parameters())) > 30
    # The images' own prompts differ where the images do.
    with torch.no_grad():
        patches_BNW = tower.embed(images_BCHW, None)[:, tower.n_prefix :]
        first_PW, second_PW = model.instapg(model.prompts.at(1, 2), patches_BNW)
    assert (first_PW - second_PW).abs().max() > 1e-4


def sigmoid_backbone(visual, tower):
    """A model of the sigmoid loss, which has a bias in its logits, around an image tower."""
    clip = torch.nn.Module()
    clip.visual, clip.logit_scale = visual, torch.tensor(3.0)
    clip.logit_bias = torch.tensor(-10.0)
    return Backbone("test", clip, tower, None, ImageTransform(32, (0.5,) * 3, (0.5,) * 3))


def leaves_with_gradients(loss):
    """The tensors that a backward pass from a loss would write a gradient into."""
    leaves, seen, todo = set(), set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        todo += [following for following, _ in node.next_functions]
    return leaves


@pytest.mark.parametrize("config", [AduConfig(n_ctx=0, instapg=False), BaselineConfig(n_ctx=0)])
def test_with_options_off_the_method_is_the_untouched_model_to_the_bit(
    visual, tower, images_BCHW, config
):
    backbone = sigmoid_backbone(visual, tower)
    clip = backbone.clip
    features_BE = F.normalize(plain(visual, images_BCHW), dim=-1)
    text_CE = F.normalize(torch.randn(2, features_BE.shape[1]), dim=-1)
    task = Task(("cup", "fish"), ("photo", "sketch"), ("sketch",), text_CE)
    # As open_clip's own forward pass scores a pair.
    logits_BC = clip.logit_scale.exp() * features_BE @ text_CE.T + clip.logit_bias
    output = METHODS[config.name](config, backbone, task)(images_BCHW)
    assert torch.equal(output.features_BE, features_BE)
    assert torch.equal(output.logits_BC, logits_BC)


def plain(visual, images_BCHW):
    out = visual(images_BCHW)
    return out[0] if isinstance(out, tuple) else out


def test_a_tower_without_tokens_is_refused_with_those_that_have_them():
    resnet = _build_vision_tower(16, CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, image_size=32))
    with pytest.raises(UserError, match=r"backbone RN: .* ModifiedResNet, .* ViT-B-16-SigLIP2"):
        open_tower(resnet, "RN")
    fastvit = _build_vision_tower(16, CLIPVisionCfg(timm_model_name="fastvit_t8", image_size=64))
    with pytest.raises(UserError, match=r"its image tower is a FastVit"):
        open_tower(fastvit, "MobileCLIP-S1")


def test_the_list_of_architectures_names_each_kind_that_is_taken():
    known = promptable_architectures()
    for name in ("ViT-B-16-quickgelu", "ViT-H-14", "ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-B-16"):
        assert name in known
    for name in ("RN50", "MobileCLIP-S1", "convnext_base", "ViTamin-B"):
        assert name not in known
