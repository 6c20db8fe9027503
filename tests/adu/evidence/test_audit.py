"""The audit: what it finds on known classes and domains, in other words, and beyond them."""

import math

import pytest
import torch

from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig, select_images
from adu.data.manifest import load_manifest
from adu.errors import UserError
from adu.evaluation.evaluate import evaluate_test
from adu.evidence.audit import audit
from adu.methods import METHODS, build_method
from adu.models.backbone import BackboneConfig
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint
from adu.training.config import RunConfig
from tests.tiny import CLASSES, DOMAINS, tiny_backbone, tiny_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    return folder


def open_data(folder, **data):
    config = ContextConfig(
        backbone=BackboneConfig(name=str(folder / "model")),
        data=DataConfig(manifest=str(folder / "manifest"), shots=2, val_shots=1, **data),
    )
    return load_context(config, torch.device("cpu"))


def audited(context, method="baseline", templates=()):
    run = RunConfig.model_validate({"forget": ("sketch",), "method": method})
    torch.manual_seed(0)
    model = build_method(run.method, context.backbone, context.task(run.forget))
    whole = load_manifest(context.config.data.manifest)
    return model, run, audit(model, run, context, whole, templates, probe_shots=2)


def test_it_agrees_with_the_streamed_evaluation(folder):
    context = open_data(folder)
    model, run, found = audited(context, "adu")
    assert found.scores == evaluate_test(model, context, run.forget).scores
    assert found.novel is None and found.unseen == {}
    assert 0 <= found.forget.entropy <= math.log(len(CLASSES))
    assert 0 <= found.retain.calibration_error <= 1


def test_the_domains_of_brightness_are_told_by_the_probe(folder):
    # Tiny images of another domain are brighter, which even random weights let through.
    assert audited(open_data(folder))[2].domain_accuracy > 0.6


def test_the_template_trained_with_gives_the_same_scores(folder):
    context = open_data(folder)
    template = context.config.backbone.template
    for method in ("baseline", "clipfit", "lp++"):
        found = audited(context, method, (template, "{class}"))[2]
        assert found.by_template[template] == found.scores
        assert found.by_template.keys() == {template, "{class}"}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lp++"])
def test_classes_and_domains_that_were_not_trained_on(folder, method, tmp_path):
    context = open_data(folder, classes="base", unseen_domains=["clipart"])
    assert (context.classes, context.domains) == (("cup", "fish"), ("photo", "sketch"))
    # The tiny text tower has no room for CoOp's own 16 tokens.
    options = {"coop": {"n_ctx": 4}, "distilled": {"teacher": "read in training alone"}}
    options = {"name": method, **options.get(method, {})}
    model, run, found = audited(context, options)
    # Only one novel class is left to choose from.
    assert (found.novel.mem, found.novel.for_) == (1, 0)
    assert found.unseen.keys() == {"clipart"}
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(checkpoint_bytes(model, run, context))
    assert load_checkpoint(str(file), context)[1] == run


def test_a_probe_of_known_classes_has_no_score_on_others(folder):
    assert audited(open_data(folder, classes="base"), "lp++")[2].novel is None


def test_base_and_novel_classes_are_all_classes(folder):
    manifest = load_manifest(str(folder / "manifest"))
    base = select_images(manifest, DataConfig(classes="base"))
    novel = select_images(manifest, DataConfig(classes="novel"))
    assert base.classes + novel.classes == CLASSES
    assert base.table.num_rows + novel.table.num_rows == manifest.table.num_rows
    assert select_images(manifest, DataConfig()).table.equals(manifest.table)


def test_an_unknown_domain_cannot_be_left_out(folder):
    manifest = load_manifest(str(folder / "manifest"))
    with pytest.raises(UserError, match=r"unseen_domains 'oil': unknown \(known: clipart, photo"):
        select_images(manifest, DataConfig(unseen_domains=("oil",)))
    assert manifest.domains == DOMAINS
