"""Checkpoints hold what was trained, say what they are, and come back the same."""

import pytest
import safetensors.torch
import torch

from adu.checkpoint import checkpoint_bytes, load_checkpoint, read_card
from adu.errors import UserError
from adu.methods.adu import AduConfig
from adu.trainer import RunConfig, TrainConfig, Trainer
from tests.tiny import CLASSES, tiny_context

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


def test_a_checkpoint_holds_only_what_was_trained(context, trained):
    data = checkpoint_bytes(trained, RUN, context)
    assert set(safetensors.torch.load(data)) == set(trained.trainable())
    card = read_card(data, "memory")
    assert card["classes"] == list(CLASSES)
    assert card["manifest_digest"] == context.manifest.digest


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
