"""Checkpoints hold what was trained, say what they are, and come back the same."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from adu.context import open_context
from adu.errors import UserError
from adu.methods.adu import AduConfig
from adu.models.backbone import BackboneConfig
from adu.training.checkpoint import CARD_KEY, checkpoint_bytes, load_checkpoint, read_card
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import Trainer
from tests.tiny import CLASSES, tiny_backbone, tiny_context

RUN = RunConfig(
    forget=("sketch",), method=AduConfig(n_ctx=2), train=TrainConfig(epochs=1, batch_size=9)
)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(context):
    trainer = Trainer(RUN, context)
    list(trainer.epochs())
    return trainer.model


def test_a_checkpoint_comes_back_as_the_same_model(context, trained, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(checkpoint_bytes(trained, RUN, context))
    model, run = load_checkpoint(str(file), context)
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images_BCHW).logits_BC, trained(images_BCHW).logits_BC)
    assert run == RUN


def test_a_checkpoint_holds_only_what_was_trained_and_is_needed(context, trained):
    """The domain head is trained with the rest and dropped at inference (paper, section 4.1)."""
    data = checkpoint_bytes(trained, RUN, context)
    head = {"domain_head.weight", "domain_head.bias"}
    assert set(safetensors.torch.load(data)) == set(trained.trainable()) - head
    card = read_card(data, "memory")
    assert card.classes == CLASSES
    assert card.manifest_digest == context.manifest.digest
    assert card.fingerprint == context.backbone.fingerprint


def with_card(data, change):
    """A checkpoint with another card."""
    tensors = safetensors.torch.load(data)
    card = read_card(data, "x").model_dump(mode="json", by_alias=True)
    text = json.dumps(change(card))
    return safetensors.torch.save(tensors, metadata={CARD_KEY: text})


def with_weights(data, change):
    """A checkpoint with other weights."""
    card = read_card(data, "x").model_dump(mode="json", by_alias=True)
    tensors = change(safetensors.torch.load(data))
    return safetensors.torch.save(tensors, metadata={CARD_KEY: json.dumps(card)})


def without(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


def test_a_checkpoint_of_version_1_is_still_read(context, trained, tmp_path):
    """It has no fingerprint, and holds the domain head."""
    data = checkpoint_bytes(trained, RUN, context)
    data = with_weights(data, lambda w: w | {"domain_head.weight": torch.zeros(3, 16)})
    data = with_weights(data, lambda w: w | {"domain_head.bias": torch.zeros(3)})
    data = with_card(data, lambda card: without("fingerprint")(card) | {"version": 1})
    (tmp_path / "old").write_bytes(data)
    model, _ = load_checkpoint(str(tmp_path / "old"), context)
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images_BCHW).logits_BC, trained(images_BCHW).logits_BC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"version": 99}, "card version 99 is newer than 2"),
        (without("version"), "is not one of ours"),
        (without("run"), "card: field 'run' is missing"),
        (without("backbone"), "card: field 'backbone' is missing"),
        (without("classes"), "card: field 'classes' is missing"),
        (without("domains"), "card: field 'domains' is missing"),
        (lambda card: card | {"sauce": 1}, "card: unknown field 'sauce' .known: "),
        (lambda card: card | {"classes": 3}, "card: classes = 3: "),
        (lambda card: card | {"classes": [1, 2, 3]}, "card: classes.0 = 1: "),
        (lambda card: card | {"run": []}, "card: run = ..: "),
        (lambda card: [card], "is not one of ours"),
        (lambda card: None, "is not one of ours"),
        (
            lambda card: card | {"backbone": card["backbone"] | {"template": "{class}"}},
            "was trained with the caption '{class}', not 'a photo of a {class}.'",
        ),
    ],
)
def test_a_card_that_cannot_be_is_one_line(context, trained, tmp_path, change, message):
    file = tmp_path / "odd"
    file.write_bytes(with_card(checkpoint_bytes(trained, RUN, context), change))
    with pytest.raises(UserError, match=f"^checkpoint .*odd: {message}[^\n]*$"):
        load_checkpoint(str(file), context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"prompts.tokens.0": torch.zeros(7, 7)}, "size mismatch for prompts.tokens"),
        (without("prompts.tokens.0"), "Missing key.* .prompts.tokens.0"),
        (lambda w: w | {"sauce": torch.zeros(1)}, "Unexpected key.* .sauce"),
        (lambda w: w | {"instapg.norm_prompts.bias": torch.full((32,), float("nan"))}, "holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(context, trained, tmp_path, change, message):
    file = tmp_path / "odd"
    file.write_bytes(with_weights(checkpoint_bytes(trained, RUN, context), change))
    with pytest.raises(UserError, match=f"^checkpoint .*odd: [^\n]*{message}[^\n]*$"):
        load_checkpoint(str(file), context)


def test_a_truncated_checkpoint_is_one_line_wherever_it_ends(context, trained, tmp_path):
    data = checkpoint_bytes(trained, RUN, context)
    for end in (1, 8, 100, 2000, len(data) // 2, len(data) - 1):
        (tmp_path / "part").write_bytes(data[:end])
        with pytest.raises(UserError, match=r"^checkpoint .*part: [^\n]+$"):
            load_checkpoint(str(tmp_path / "part"), context)


def test_a_checkpoint_of_another_backbone_is_refused(context, trained, tmp_path):
    """Of the same shape and name, but with other weights."""
    (tmp_path / "checkpoint").write_bytes(checkpoint_bytes(trained, RUN, context))
    other = BackboneConfig(name=str(tiny_backbone(tmp_path / "model", seed=1)))
    config = context.config.model_copy(update={"backbone": other})
    others = open_context(config, context.manifest, context.device)
    with pytest.raises(UserError, match=r"was trained on backbone '.*model'; '.*model' has other"):
        load_checkpoint(str(tmp_path / "checkpoint"), others)
    squashed = replace(context.backbone.transform, resize_mode="squash")
    others = replace(context, backbone=replace(context.backbone, transform=squashed))
    with pytest.raises(UserError, match="other weights or prepares images in another way"):
        load_checkpoint(str(tmp_path / "checkpoint"), others)


@pytest.mark.parametrize("data", [b"", b"not safetensors at all", safetensors.torch.save({})])
def test_other_files_are_refused_by_name(context, tmp_path, data):
    file = tmp_path / "other.bin"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"other.bin: is not one of ours"):
        load_checkpoint(str(file), context)


def test_other_classes_are_refused(context, trained, tmp_path):
    context_with_others = tiny_context(tmp_path)
    object.__setattr__(context_with_others.manifest, "classes", ("bowl", "fish", "star"))
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(checkpoint_bytes(trained, RUN, context))
    with pytest.raises(UserError, match="trained for classes cup, fish, star"):
        load_checkpoint(str(file), context_with_others)
