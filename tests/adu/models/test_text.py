"""Learned text context stands where CoOp puts it, in text towers of each kind."""

import pytest
import torch
import torch.nn.functional as F

from adu.errors import UserError
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone
from adu.models.text import PromptedText, TextContext
from tests.tiny import CLASSES, MODEL, tiny_backbone

# SigLIP's text towers look at the last token, without a mask; CLIP's at the end token.
KINDS = {
    "CLIP": {},
    "text tower of its own": {"custom_text": True},
    "like SigLIP": {
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": MODEL["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"},
    },
}


@pytest.fixture(params=KINDS, scope="module")
def backbone(request, tmp_path_factory):
    folder = tiny_backbone(tmp_path_factory.mktemp("model"), **KINDS[request.param])
    return load_backbone(BackboneConfig(name=str(folder)), torch.device("cpu"))


def test_context_of_real_words_gives_their_captions_features(backbone):
    context = TextContext(backbone, CLASSES, 4, init="a photo of a")
    expected_CE = backbone.text_features(CLASSES, "a photo of a {class}.")
    torch.testing.assert_close(context().detach(), expected_CE)


def test_context_longer_than_its_words_starts_the_rest_at_random(backbone):
    context = TextContext(backbone, CLASSES, 6, init="a photo of a", init_std=1.0)
    assert context.tokens.shape == (6, MODEL["text_cfg"]["width"])
    four = TextContext(backbone, CLASSES, 4, init="a photo of a")
    assert torch.equal(context.tokens[:4], four.tokens)
    assert context.tokens[4:].abs().min() > 0


def test_deeper_context_replaces_what_the_block_before_made(backbone):
    captions = PromptedText(backbone, CLASSES, 2)
    first_KV, second_KV = torch.randn(2, 2, captions.width)
    found_CE = captions.features(first_KV, lambda i: second_KV if i == 1 else None)
    assert not torch.allclose(found_CE, captions.features(first_KV))
    torch.testing.assert_close(found_CE, by_hand(backbone, first_KV, second_KV))


def test_a_deep_context_has_tokens_of_its_own_in_each_block(backbone):
    context = TextContext(backbone, CLASSES, 2, depth=2, init_std=1.0)
    found_CE = context()
    torch.testing.assert_close(found_CE, by_hand(backbone, context.tokens, context.deeper[0]))
    found_CE.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in context.parameters())


def by_hand(backbone, first_KV, second_KV):
    """Two blocks for one caption at a time, the context's places written out."""
    clip = backbone.clip
    tower = clip if hasattr(clip, "token_embedding") else clip.text
    rows = []
    for name in CLASSES:
        # "X" is one token; what it embeds to is overwritten.
        tokens_T = backbone.tokenizer([f"X X {name}."])[0]
        x = tower.token_embedding(tokens_T).clone()
        x[1:3] = first_KV
        blocks = tower.transformer.resblocks
        x = blocks[0]((x + tower.positional_embedding)[None], attn_mask=tower.attn_mask)
        x[:, 1:3] = second_KV
        x = tower.ln_final(blocks[1](x, attn_mask=tower.attn_mask))[0]
        pooled = x[-1] if getattr(tower, "pool_type", "") == "last" else x[tokens_T.argmax()]
        rows.append(F.normalize(pooled @ tower.text_projection, dim=-1))
    return torch.stack(rows)


def test_a_context_that_leaves_no_room_for_the_class_is_refused(backbone):
    with pytest.raises(UserError, match=r"text context of 14 tokens: .* leaves room for 12 of 16"):
        PromptedText(backbone, CLASSES, 14)
