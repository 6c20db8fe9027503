"""A trained model is a module like any other."""

import copy

import pytest
import torch

import adu
from adu.methods import METHODS
from adu.serving.model import UnlearnedModel
from adu.training.checkpoint import make_card
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from tests.tiny import tiny_teacher

OPTIONS = {"coop": {"n_ctx": 4}}


def untrained(context, name):
    """A model as it is before its first step, in which little is zero."""
    options = {"teacher": tiny_teacher(context)} if name == "distilled" else OPTIONS.get(name, {})
    run = RunConfig.model_validate({"forget": ["sketch"], "method": {"name": name, **options}})
    return UnlearnedModel(Trainer(run, context).model, make_card(run, context))


@pytest.mark.parametrize("name", METHODS)
def test_it_gives_what_its_method_gives(context, images_BCHW, name):
    model = untrained(context, name)
    with torch.no_grad():
        expected = model.method(images_BCHW)
        found = model(images_BCHW)
    torch.testing.assert_close(found.logits_BC, expected.logits_BC)
    assert torch.equal(found.features_BE, expected.features_BE)
    assert torch.equal(found.text_CE, expected.text_CE)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_copy_moves_by_itself_and_takes_everything_along(context, images_BCHW, name):
    """A dtype stands for a device here: what stays behind does not fit any more."""
    model = untrained(context, name)
    before = model(images_BCHW)
    moved = copy.deepcopy(model).to(torch.bfloat16)
    assert {tensor.dtype for tensor in moved.state_dict().values()} == {torch.bfloat16}
    features_BE = moved(images_BCHW.bfloat16()).features_BE
    torch.testing.assert_close(features_BE, before.features_BE, atol=0.05, rtol=0)
    # The one that it was copied from is as it was.
    assert torch.equal(model(images_BCHW).logits_BC, before.logits_BC)


@torch.no_grad()
def test_its_state_is_whole_and_fits_another_of_its_kind(context, images_BCHW):
    model, other = untrained(context, "adu"), copy.deepcopy(untrained(context, "adu"))
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(images_BCHW).logits_BC, model(images_BCHW).logits_BC)


def test_it_is_ready_for_use_and_only_its_method_can_be_trained(context):
    model = untrained(context, "adu")
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {f"method.{name}" for name in model.method.trainable()}
    assert isinstance(model, adu.UnlearnedModel)


def test_a_compiled_step_is_the_same_step(context, images_BCHW):
    model = untrained(context, "adu").method
    # Without machine code, which would take a compiler; the graph is what may differ.
    compiled = torch.compile(model, backend="aot_eager")
    class_B, domain_B = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    gradients = []
    for step in (model, compiled):
        model.zero_grad()
        terms = model.losses(step(images_BCHW), class_B, domain_B)
        terms["total"].backward()
        gradients.append({name: p.grad.clone() for name, p in model.trainable().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)
