"""A student learns from the teacher that is named, if that is one for its run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adu.context import open_context
from adu.errors import UserError
from adu.models.backbone import BackboneConfig
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from adu.training.teacher import untrained
from tests.tiny import CLASSES, DOMAINS, tiny_backbone, tiny_context, tiny_teacher


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


def student(context, teacher, seed=0, **options):
    method = {"name": "distilled", "teacher": teacher, **options}
    values = {"forget": ["sketch"], "method": method, "train": {"seed": seed}}
    return untrained(RunConfig.model_validate(values), context)


def test_each_seed_may_have_a_teacher_of_its_own(context, tmp_path, monkeypatch):
    (tmp_path / "seed-3.safetensors").write_bytes(Path(tiny_teacher(context)).read_bytes())
    monkeypatch.chdir(tmp_path)
    model = student(context, "seed-{seed}.safetensors", seed=3)
    # Whoever trains it elsewhere finds it as well.
    assert model.config.teacher == f"{tmp_path}/seed-{{seed}}.safetensors"
    assert model(torch.zeros(1, 3, 32, 32)).taught is not None
    with pytest.raises(UserError, match=r"^[^\n]*seed-4.safetensors[^\n]*$"):
        student(context, "seed-{seed}.safetensors", seed=4)


def test_a_teacher_on_another_backbone_is_one_line(context, tmp_path):
    backbone = BackboneConfig(name=str(tiny_backbone(tmp_path / "other", seed=1)))
    config = context.config.model_copy(update={"backbone": backbone})
    other = open_context(config, context.manifest, torch.device("cpu"))
    with pytest.raises(UserError, match="^checkpoint .*teacher-sketch.* has other weights"):
        student(other, tiny_teacher(context))


@pytest.mark.parametrize(
    ("classes", "domains", "message"),
    [
        (CLASSES[:2], DOMAINS, "classes cup, fish, star; the images have cup, fish"),
        (CLASSES, DOMAINS[1:], "domains clipart, photo, sketch; the images have photo, sketch"),
    ],
)
def test_a_teacher_of_other_images_is_one_line(context, classes, domains, message):
    other = replace(context, manifest=context.manifest.select(classes, domains))
    with pytest.raises(
        UserError, match=f"^checkpoint .*teacher-sketch.* was trained for {message}"
    ):
        student(other, tiny_teacher(context))


def test_a_teacher_that_has_unlearned_something_else_is_one_line(context):
    teacher = tiny_teacher(context, ("photo",))
    with pytest.raises(UserError, match="teacher-photo.safetensors: has unlearned photo, not sk"):
        student(context, teacher)


def test_a_teacher_whose_features_do_not_say_all_is_asked_for_its_predictions(context, tmp_path):
    run = RunConfig.model_validate({"forget": ["sketch"], "method": "lp++"})
    probe, file = untrained(run, context), tmp_path / "probe.safetensors"
    with torch.no_grad():
        probe.weight_CE.fill_(0.5)
        probe.weight_CE[0] = -0.5
    file.write_bytes(checkpoint_bytes(probe, run, context))
    with pytest.raises(UserError, match=r"^method.match = 'features': .*allowed: 'predictions'"):
        student(context, str(file))
    student(context, str(file), match="predictions")
