"""The public face: what a stranger types works, and what is mistyped is one line."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adu
from adu import api
from adu.data import forget
from adu.demo import dataset, render
from adu.errors import UserError
from adu.training import evolution, trainer
from tests.tiny import CLASSES, tiny_backbone, tiny_context, tiny_images

WITH_EXAMPLES = (api, trainer, evolution, dataset, render, forget)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return adu.open_images(tiny_images(tmp_path_factory.mktemp("photos")))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return adu.load_backbone(str(tiny_backbone(tmp_path_factory.mktemp("backbone"))), "cpu")


def unlearn(images, backbone, **options):
    few = {"method": {"name": "adu", "n_ctx": 2}, "epochs": 2, "shots": 2, "val_shots": 1}
    return adu.unlearn(images, "sketch", backbone, **few | options)


@pytest.fixture(scope="module")
def model(images, backbone):
    return unlearn(images, backbone)


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=str)
def test_the_examples_in_docstrings_run_as_they_stand(module, tmp_path):
    have = {"folder": tmp_path, "parameter": torch.nn.Parameter(torch.ones(2))}
    if module is trainer:
        have["context"] = tiny_context(tmp_path)
    failed, tried = doctest.testmod(module, extraglobs=have)
    assert tried and not failed


def test_no_other_module_has_examples():
    with_examples = {m.__file__ for m in WITH_EXAMPLES}
    files = {str(f) for f in Path(adu.__file__).parent.rglob("*.py") if ">>> " in f.read_text()}
    assert files == with_examples


def test_everything_that_is_offered_is_there_and_nothing_else():
    assert api.__all__ == adu.__all__
    assert set(adu.__all__) <= set(dir(adu))
    assert all(getattr(adu, name).__doc__ for name in adu.__all__)
    with pytest.raises(AttributeError, match="module 'adu' has no attribute 'forget'"):
        _ = adu.forget


def test_a_model_comes_with_its_scores_and_history(images, backbone):
    seen = []
    model = unlearn(images, backbone, on_epoch=seen.append)
    assert [report.epoch for report in model.history] == [1, 2]
    assert tuple(seen) == model.history
    assert model.scores.n_by_domain == dict.fromkeys(("clipart", "photo", "sketch"), 12)
    assert adu.evaluate(model, images) == model.scores


def test_a_saved_model_comes_back_the_same_and_can_be_saved_again(model, tmp_path):
    images_BCHW = torch.randn(2, 3, 32, 32)
    adu.save(model, tmp_path / "one")
    loaded = adu.load(tmp_path / "one", device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(images_BCHW).logits_BC, model(images_BCHW).logits_BC)
    adu.save(loaded, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    with pytest.raises(UserError, match="was trained on backbone"):
        adu.load(tmp_path / "one", backbone="demo")


def test_a_classifier_takes_files_arrays_and_pictures_alike(model, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    file = tmp_path / "a.png"
    picture.save(file)
    same = [file, str(file), file.read_bytes(), np.asarray(picture), picture]
    classifier = adu.Classifier(model)
    scores_BC, features_BE = classifier.scores(same), classifier.features(same)
    assert scores_BC.shape == (5, 3)
    for found in (scores_BC, features_BE):
        np.testing.assert_allclose(found, found[[0] * 5], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features_BE, axis=1), 1, atol=1e-5)
    assert classifier.features([]).shape == (0, features_BE.shape[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochz": 3}, "adu.unlearn: unknown field 'train.epochz' .known: epochs, "),
        ({"method": "amnesia"}, "method.name = 'amnesia': unknown method .known: zero_shot, "),
        ({"method": {"name": "adu", "gama": 1}}, "unknown field 'method.gama'"),
        ({"shots": 9}, "has 4 training images, fewer than 9 shots"),
        ({"template": "a photo"}, "backbone.template = 'a photo': must contain {class}"),
    ],
)
def test_a_mistyped_option_is_one_line(images, backbone, options, message):
    with pytest.raises(UserError, match=message):
        unlearn(images, backbone, **options)


def test_unknown_domains_and_other_data_sets_are_one_line(images, backbone, model):
    with pytest.raises(UserError, match="forget domain 'sketches': unknown .known domains: clip"):
        adu.unlearn(images, ["sketches"], backbone)
    with pytest.raises(UserError, match=f"trained for classes {', '.join(CLASSES)}; .* have boat"):
        adu.evaluate(model, "demo")
