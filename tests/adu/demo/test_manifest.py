"""The library's defaults work by themselves, on the same demo that the commands draw."""

import tempfile

import pytest
import torch

from adu.context import ContextConfig, load_context
from adu.demo.manifest import demo_manifest
from adu.evaluation.evaluate import evaluate_images
from adu.methods import build_method
from adu.methods.zero_shot import ZeroShotConfig
from adu.models.backbone import BackboneConfig
from pipeline.demo_data import prepare_demo


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def test_the_librarys_demo_is_the_commands_demo(home):
    drawn, ingested = demo_manifest(home), prepare_demo(home / "ingested")
    assert drawn.digest == ingested.digest
    assert (drawn.name, drawn.synthetic) == (ingested.name, ingested.synthetic)
    sizes = ["image_id", "width", "height", "bytes"]
    assert drawn.table.select(sizes).equals(ingested.table.select(sizes))


def test_it_is_drawn_once(home, monkeypatch):
    demo_manifest(home)
    monkeypatch.setattr("adu.demo.manifest.write_images", None)
    assert demo_manifest(home).n_images == 1280


def test_a_context_of_nothing_but_defaults_is_one(home, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    context = load_context(ContextConfig(), torch.device("cpu"))
    assert context.config.backbone == BackboneConfig()
    zero_shot = build_method(ZeroShotConfig(), context.backbone, context.task(("sketch",)))
    assert evaluate_images(zero_shot, context, context.val, ("sketch",)).mem > 0.8
