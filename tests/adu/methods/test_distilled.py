"""Distilled: the student comes to say what its teacher says, in weights of its own alone."""

import pytest
import torch

from adu.data.decoded import eval_batch
from adu.methods.distilled import DistilledConfig
from adu.training.checkpoint import load_checkpoint
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import Trainer
from tests.tiny import tiny_context, tiny_teacher

IMAGES_BCHW = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASS_B, DOMAIN_B = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 2, 0])


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"), shots=3)


def student(context, match="features", **train):
    method = DistilledConfig(teacher=tiny_teacher(context), match=match)
    run = RunConfig(forget=("sketch",), method=method, train=TrainConfig(**train))
    return Trainer(run, context)


def test_it_starts_as_the_untouched_model_and_trains_its_image_tower_alone(context):
    model, clip = student(context).model, context.backbone.clip
    with torch.no_grad():
        features_BE = model.unit_features(IMAGES_BCHW)
        expected_BE = torch.nn.functional.normalize(clip.encode_image(IMAGES_BCHW), dim=-1)
    assert torch.equal(features_BE, expected_BE)
    names = {f"visual.{name}" for name, _ in clip.visual.named_parameters()}
    assert model.open_clip_weights().keys() == names
    # Neither a teacher nor anything else is kept, trained or shipped.
    assert len(model.state_dict()) == len(model.trainable()) == len(model.deployed()) == len(names)


def squared_distance(taught, own):
    """Of unit-length features, in float64, number by number."""
    pairs = zip(taught.features_BE.double(), own.features_BE.double(), strict=True)
    return sum((a - b) ** 2 for one, other in pairs for a, b in zip(one, other, strict=True)) / 5


def divergence(taught, own):
    """sum_c p log(p / q) of an image, p being the teacher's; the mean over images."""
    p, q = (each.logits_BC.double().exp() for each in (taught, own))
    p, q = (each / each.sum(dim=1, keepdim=True) for each in (p, q))
    return sum(p[i, c] * (p[i, c] / q[i, c]).log() for i in range(5) for c in range(3)) / 5


@pytest.mark.parametrize(
    ("match", "formula"), [("features", squared_distance), ("predictions", divergence)]
)
def test_the_loss_says_how_far_it_is_from_its_teacher(context, match, formula):
    model = student(context, match).model
    teacher, _ = load_checkpoint(tiny_teacher(context), context)
    with torch.no_grad():
        expected = formula(teacher.eval()(IMAGES_BCHW), model.eval()(IMAGES_BCHW))
    terms = model.losses(model.train()(IMAGES_BCHW), CLASS_B, DOMAIN_B)
    assert terms.keys() == {"total"}
    torch.testing.assert_close(terms["total"].double(), expected, rtol=1e-4, atol=1e-6)
    terms["total"].backward()
    assert all(weight.grad is not None for weight in model.trainable().values())
    assert all(weight.grad is None for weight in context.backbone.clip.parameters())


def test_predictions_are_compared_at_the_same_scale(context):
    """Half the logit scale softens the teacher's as well: its own answers stay the best ones."""
    report = next(student(context, "predictions", lr=1e-9, logit_factor=1e-3).epochs())
    assert 0 <= report.losses["total"] < 1e-4


def test_it_comes_to_give_the_teachers_answers_without_its_prompts(context):
    trainer = student(
        context, epochs=30, batch_size=12, optimizer="adamw", lr=1e-3, crop_scale_min=1, hflip=False
    )
    reports = list(trainer.epochs())
    assert reports[-1].losses["total"] < 0.1 * reports[0].losses["total"]
    teacher, _ = load_checkpoint(tiny_teacher(context), context)
    rows = range(len(context.train))
    images_BCHW = eval_batch(context.train, rows, context.backbone.transform)
    with torch.no_grad():
        p, q = (each(images_BCHW).logits_BC.softmax(dim=-1) for each in (teacher, trainer.model))
    assert (p - q).abs().mean() < 0.05
