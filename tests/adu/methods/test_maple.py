"""MaPLe's image prompts are made from its text prompts, block by block."""

import pytest
import torch
import torch.nn.functional as F

from adu.errors import UserError
from adu.methods import build_method
from adu.methods.base import Task
from adu.methods.maple import MaPLeConfig
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone
from adu.models.prompted import prompted_features
from tests.tiny import CLASSES, DOMAINS, tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tiny_backbone(tmp_path_factory.mktemp("model"))
    return load_backbone(BackboneConfig(name=str(folder)), torch.device("cpu"))


@pytest.fixture
def task(backbone):
    return Task(CLASSES, DOMAINS, ("sketch",), backbone.text_features(CLASSES, "a {class}."))


def test_each_blocks_prompts_come_from_one_learned_pair(backbone, task):
    model = build_method(MaPLeConfig(n_ctx=2, depth=2, init_std=1.0), backbone, task)
    images_BCHW = torch.randn(3, 3, 32, 32)
    learned = [model.context.tokens, model.deeper[0]]
    prompts = [
        F.linear(t, c.weight, c.bias).expand(3, -1, -1)
        for t, c in zip(learned, model.couplings, strict=True)
    ]
    expected_BE = prompted_features(
        backbone.tower, images_BCHW, prompts[0], lambda *_: prompts[1], depth=2
    )
    torch.testing.assert_close(model.image_features(images_BCHW), expected_BE)
    expected_CE = model.context.captions.features(
        learned[0], lambda i: learned[1] if i == 1 else None
    )
    torch.testing.assert_close(model.text_features(), expected_CE)


def test_it_starts_from_the_words_of_the_template(backbone, task):
    model = build_method(MaPLeConfig(n_ctx=2, depth=1), backbone, task)
    words_KV = backbone.clip.token_embedding(backbone.tokenizer(["a photo"]))[0, 1:3]
    assert torch.equal(model.context.tokens, words_KV)


def test_more_blocks_than_the_shorter_tower_has_are_refused(backbone, task):
    with pytest.raises(UserError, match=r"method.depth = 3: the shorter tower has 2 blocks"):
        build_method(MaPLeConfig(depth=3), backbone, task)
