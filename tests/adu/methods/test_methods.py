"""What the methods compute, on an open_clip model with random weights."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from adu.errors import UserError
from adu.methods import METHODS, build_method
from adu.methods.adu import AduConfig
from adu.methods.base import Task
from adu.methods.baseline import BaselineConfig
from adu.methods.clipfit import ClipFitConfig
from adu.methods.coop import CoOpConfig
from adu.methods.losses import ForgetLoss, forget_loss, mmd_squared
from adu.methods.lp_plus_plus import LpPlusPlusConfig
from adu.methods.maple import MaPLeConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone
from adu.training.config import RunConfig
from tests.adu.formulas import attention_64, norm_64
from tests.tiny import CLASSES, DOMAINS, N_BLOCKS, tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tiny_backbone(tmp_path_factory.mktemp("model"))
    return load_backbone(BackboneConfig(name=str(folder)), torch.device("cpu"))


@pytest.fixture(scope="module")
def task(backbone):
    return Task(CLASSES, DOMAINS, ("sketch",), backbone.text_features(CLASSES, "a {class}."))


@pytest.fixture
def images_BCHW():  # noqa: N802 - a fixture is called like what it gives
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain_tower(visual, images_BCHW, prompts_by_block, n_ctx):
    """The tower with prompts, written from the description: always after the patches."""
    x = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
    x = x + visual.positional_embedding
    for i, block in enumerate(visual.transformer.resblocks):
        if i in prompts_by_block:
            kept = x if i == 0 else x[:, :-n_ctx]
            x = torch.cat([kept, prompts_by_block[i].expand(len(x), -1, -1)], 1)
        if i == 0:
            x = visual.ln_pre(x)
        x = block(x)
    return visual.ln_post(x)[:, 0] @ visual.proj


@pytest.mark.parametrize(
    "config",
    [
        ZeroShotConfig(),
        BaselineConfig(n_ctx=0),
        AduConfig(n_ctx=0),
        AduConfig(n_ctx=0, instapg=False),
    ],
    ids=str,
)
def test_without_prompts_the_output_is_the_untouched_models_exactly(
    backbone, task, images_BCHW, config
):
    with torch.no_grad():
        output = build_method(config, backbone, task)(images_BCHW)
        features_BE = F.normalize(backbone.clip.encode_image(images_BCHW), dim=-1)
    assert torch.equal(output.features_BE, features_BE)


def test_prompts_stand_after_the_patches_of_the_first_blocks(backbone, task, images_BCHW):
    model = build_method(BaselineConfig(n_ctx=3, depth=2, init_std=1.0), backbone, task)
    prompts = dict(enumerate(model.prompts.tokens))
    with torch.no_grad():
        expected_BE = plain_tower(backbone.clip.visual, images_BCHW, prompts, 3)
        torch.testing.assert_close(model.image_features(images_BCHW), expected_BE)
    # With gradients, tokens that nobody reads are left out.
    torch.testing.assert_close(model.image_features(images_BCHW), expected_BE)


@pytest.mark.parametrize("mode", ["carry", "add"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_instapg_makes_prompts_that_depend_on_the_image_from_its_block_on(
    backbone, task, images_BCHW, mode, residual
):
    config = AduConfig(
        n_ctx=2,
        depth=3,
        instapg_layer=1,
        instapg_mode=mode,
        instapg_residual=residual,
        init_std=1.0,
    )
    model = build_method(config, backbone, task)
    training_BE = model.image_features(images_BCHW)
    with torch.no_grad():
        testing_BE = model.image_features(images_BCHW)
        for i, image_CHW in enumerate(images_BCHW):
            expected_E = one_image_64(backbone.clip.visual, model, image_CHW, mode, residual)
            for found_BE in (training_BE, testing_BE):
                torch.testing.assert_close(found_BE[i].double(), expected_E, atol=1e-5, rtol=1e-4)


def one_image_64(visual, model, image_CHW, mode, residual):
    """InstaPG in block 1 of three prompted ones, from the formulas, for a single image."""
    learned = [prompt.double() for prompt in model.prompts.tokens]
    insta, blocks, n_image_tokens = model.instapg, visual.transformer.resblocks, 1 + 16
    patches = image_CHW.double().unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4)
    x = patches.reshape(16, -1) @ visual.conv1.weight.double().reshape(32, -1).T
    x = torch.cat([visual.class_embedding[None].double(), x]) + visual.positional_embedding
    x = block_64(blocks[0], norm_64(visual.ln_pre, torch.cat([x, learned[0]])))[:n_image_tokens]
    queries, patches = norm_64(insta.norm_prompts, learned[1]), norm_64(insta.norm_patches, x[1:])
    answer = attention_64(insta.attention, queries, patches)
    x = block_64(blocks[1], torch.cat([x, learned[1] + answer if residual else answer]))
    if mode == "add":
        x = torch.cat([x[:n_image_tokens], learned[2] + answer])
    x = block_64(blocks[3], block_64(blocks[2], x))
    return norm_64(visual.ln_post, x)[0] @ visual.proj.double()


def block_64(block, x):
    normed = norm_64(block.ln_1, x)
    x = x + attention_64(block.attn, normed, normed)
    hidden = norm_64(block.ln_2, x) @ block.mlp.c_fc.weight.double().T + block.mlp.c_fc.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + hidden @ block.mlp.c_proj.weight.double().T + block.mlp.c_proj.bias


@pytest.mark.parametrize(
    "config",
    [
        BaselineConfig(),
        AduConfig(),
        AduConfig(instapg_mode="add"),
        AduConfig(text_n_ctx=2),
        AduConfig(recipe="authors"),
        LpPlusPlusConfig(),
        ClipFitConfig(),
        CoOpConfig(n_ctx=4),
        MaPLeConfig(depth=1),
    ],
    ids=str,
)
def test_gradients_reach_everything_trainable_and_nothing_frozen(
    backbone, task, images_BCHW, config
):
    model = build_method(config, backbone, task)
    class_B = torch.tensor([0, 1, 2, 0, 1])
    domain_B = torch.tensor([0, 1, 2, 2, 0])
    model.losses(model(images_BCHW), class_B, domain_B)["total"].backward()
    without = [name for name, p in model.trainable().items() if p.grad is None]
    assert not without
    assert all(p.grad is None for p in backbone.clip.parameters())


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_instapg_with_its_feed_forward_part_is_a_whole_block(backbone, task, images_BCHW, residual):
    config = AduConfig(
        n_ctx=2, depth=3, instapg_layer=-1, instapg_feed_forward=True, instapg_residual=residual
    )
    model = build_method(config, backbone, task)
    insta, learned = model.instapg, model.prompts.tokens[2].double()
    patches = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    queries = norm_64(insta.norm_prompts, learned)
    x = queries + attention_64(
        insta.attention, queries, norm_64(insta.norm_patches, patches.double())
    )
    hidden = norm_64(insta.norm_answer, x) @ insta.expand.weight.double().T + insta.expand.bias
    assert hidden.shape == (2, 4 * 32)
    hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    expected = x + hidden @ insta.reduce.weight.double().T + insta.reduce.bias
    found_BPW = insta(model.prompts.at(2, 1), patches[None])
    torch.testing.assert_close(found_BPW[0].double(), expected, atol=1e-5, rtol=1e-4)
    # Its place in the tower is that of attention alone, tested above.
    assert model.layer == 2


@pytest.mark.parametrize(
    ("layer", "depth", "block"), [(-1, 3, 2), (-2, 3, 1), (1, 3, 1), (None, 2, 1)]
)
def test_instapgs_block_is_counted_from_either_end_of_the_prompted_ones(layer, depth, block):
    assert AduConfig(depth=depth, instapg_layer=layer).instapg_layer_in(N_BLOCKS) == block


def test_mmd_can_be_of_the_domain_heads_logits(backbone, task, images_BCHW):
    model = build_method(AduConfig(mmd_on="domain_logits"), backbone, task)
    output, domain_B = model(images_BCHW), torch.tensor([0, 1, 2, 2, 0])
    terms = model.losses(output, torch.tensor([0, 1, 2, 0, 1]), domain_B)
    head = model.domain_head
    logits_BD = output.features_BE.double() @ head.weight.double().T + head.bias
    torch.testing.assert_close(terms["mmd"], mmd_squared(logits_BD, domain_B, 3))


def test_the_forget_loss_is_the_one_that_is_asked_for(backbone, task, images_BCHW):
    class_B, domain_B = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 2, 0])
    for kind in get_args(ForgetLoss):
        model = build_method(BaselineConfig(forget_loss=kind), backbone, task)
        output = model(images_BCHW)
        expected = forget_loss(output.logits_BC, class_B, domain_B != 2, kind)
        assert torch.equal(model.losses(output, class_B, domain_B)["forget"], expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_computed_in_full_precision(backbone, task, images_BCHW, name, precision):
    """Scaled similarities reach 100, where bf16 rounds to half a unit."""
    model = build_tiny(name, backbone, task)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = model(images_BCHW)
    assert output.logits_BC.dtype is torch.float32
    torch.testing.assert_close(
        output.logits_BC, model.class_logits(output.features_BE, output.text_CE)
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_an_empty_share_of_a_batch(backbone, task, images_BCHW, name):
    model = build_tiny(name, backbone, task)
    output = model(images_BCHW[:0])
    assert output.logits_BC.shape == (0, 3)
    assert output.features_BE.shape == (0, 16)
    # As gradients of the other ranks' images would: they must find a way.
    output.logits_BC.sum().backward()


def count_text_passes(model, monkeypatch):
    """Counts how often a method computes its text features."""
    passes = []
    text_features = model.text_features
    monkeypatch.setattr(model, "text_features", lambda: passes.append(1) or text_features())
    return passes


@pytest.mark.parametrize("name", ["clipfit", "coop", "maple", "bbf", "text context"])
def test_the_text_tower_runs_once_a_step_and_once_an_evaluation(
    backbone, task, images_BCHW, monkeypatch, name
):
    model = build_tiny(name, backbone, task)
    passes = count_text_passes(model, monkeypatch)
    class_B, domain_B = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 2, 0])
    model.losses(model(images_BCHW), class_B, domain_B)
    assert len(passes) == 1
    with torch.no_grad():
        before_BC = model(images_BCHW).logits_BC
        assert torch.equal(model(images_BCHW).logits_BC, before_BC)
        assert len(passes) == 2
        # Something trained has changed: what was held is no longer true.
        for parameter in model.text_parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        after_BC = model(images_BCHW).logits_BC
    assert len(passes) == 3
    assert not torch.allclose(after_BC, before_BC)


def build_tiny(name, backbone, task):
    # CoOp's 16 tokens are more than the tiny text tower's context has room for.
    options = {
        "coop": {"n_ctx": 4},
        "text context": {"name": "adu", "text_n_ctx": 2},
        "distilled": {"teacher": "read in training alone"},
    }
    values = {"name": name, **options.get(name, {})}
    run = RunConfig.model_validate({"forget": ["sketch"], "method": values})
    return build_method(run.method, backbone, task)


def test_a_method_holds_only_what_it_trains(backbone, task):
    model = build_method(AduConfig(), backbone, task)
    assert set(model.state_dict()) == set(model.trainable())


def test_default_depth_is_three_quarters_as_in_the_paper():
    assert BaselineConfig().depth_in(12) == 9
    assert BaselineConfig().depth_in(N_BLOCKS) == 3


def test_adu_loss_is_the_papers_sum(backbone, task, images_BCHW):
    config = AduConfig(gamma=3, **{"lambda": 2})
    model = build_method(config, backbone, task)
    terms = model.losses(
        model(images_BCHW), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 2, 0])
    )
    expected = terms["memorize"] + terms["forget"] + 3 * terms["domain_ce"] - 2 * terms["mmd"]
    torch.testing.assert_close(terms["total"], expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BaselineConfig(depth=5), "method.depth = 5: the image tower has 4 blocks"),
        (AduConfig(instapg_layer=3), "method.instapg_layer = 3: must be .* 1 to 2, .* -2 to -1"),
        (AduConfig(instapg_layer=-3), "method.instapg_layer = -3: must be .* 1 to 2, .* -2 to -1"),
        (AduConfig(depth=1), "method.depth = 1: InstaPG .* at least 2 .or method.instapg: false"),
        (
            BaselineConfig(text_n_ctx=2, text_depth=3),
            "text context of depth 3: the text tower has 2 blocks",
        ),
        (AduConfig(instapg_heads=3), "method.instapg_heads = 3: must divide .* 32"),
    ],
)
def test_options_out_of_the_towers_range_name_field_and_range(backbone, task, config, message):
    with pytest.raises(UserError, match=message):
        build_method(config, backbone, task)


def test_every_registered_method_builds_from_its_name_alone(backbone, task):
    for name in METHODS:
        assert type(build_tiny(name, backbone, task)) is METHODS[name]
