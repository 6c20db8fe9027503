"""What leaves the library says what the model says, for any number of images."""

import sys

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from adu.errors import UserError
from adu.methods import METHODS
from adu.serving.export import (
    CLASSIFIER_FILE,
    export_onnx,
    export_open_clip,
    exported_program,
)
from tests.adu.serving.test_model import untrained
from tests.tiny import CLASSES

OWN_TOWER = ("zero_shot", "lp++", "clipfit", "bbf", "coop", "distilled")


def shaken(context, name):
    """A model that is not the untouched one any more."""
    model = untrained(context, name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.method.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.text_CE.copy_(model.method.text_features())
    return model


@pytest.mark.parametrize(
    "name",
    ["adu", *(pytest.param(n, marks=pytest.mark.faults) for n in METHODS if n != "adu")],
)
@torch.no_grad()
def test_exported_graphs_give_the_models_scores(context, images_BCHW, tmp_path, name):
    model = shaken(context, name)
    program = exported_program(model).module()
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 5):
        expected = model(images_BCHW[:n])
        for logits_BC, features_BE in (
            program(images_BCHW[:n]),
            session.run(["logits", "features"], {"images": images_BCHW[:n].numpy()}),
        ):
            np.testing.assert_allclose(logits_BC, expected.logits_BC, atol=1e-4)
            np.testing.assert_allclose(features_BE, expected.features_BE, atol=1e-4)


@pytest.mark.parametrize("name", OWN_TOWER)
@torch.no_grad()
def test_a_folder_is_loaded_by_open_clip_and_gives_the_models_scores(
    context, images_BCHW, tmp_path, name
):
    model = shaken(context, name)
    export_open_clip(model, tmp_path / "out")
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    features_BE = F.normalize(clip.eval().encode_image(images_BCHW), dim=-1)
    with safe_open(tmp_path / "out" / CLASSIFIER_FILE, "pt") as file:
        weight_CE, bias_C = file.get_tensor("weight_CE"), file.get_tensor("bias_C")
        assert tuple(file.metadata()["classes"].split("\n")) == CLASSES
    expected = model(images_BCHW)
    torch.testing.assert_close(features_BE, expected.features_BE, atol=1e-4, rtol=0)
    logits_BC = features_BE @ weight_CE.T + bias_C
    torch.testing.assert_close(logits_BC, expected.logits_BC, atol=1e-4, rtol=0)
    if name in ("clipfit", "distilled"):
        # The text tower is open_clip's own as well, so that captions alone do.
        tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
        text_CE = F.normalize(clip.encode_text(tokenizer([f"a photo of a {c}." for c in CLASSES])))
        torch.testing.assert_close(text_CE, model.text_CE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - set(OWN_TOWER)))
def test_prompts_have_no_place_in_an_open_clip_folder(context, tmp_path, name):
    with pytest.raises(UserError, match=f"method {name}: has image features that no open_clip"):
        export_open_clip(untrained(context, name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_is_one_line(context, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs the package onnxscript, .*search.export"):
        export_onnx(untrained(context, "zero_shot"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
