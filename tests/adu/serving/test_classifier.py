"""A checkpoint as whoever uses it sees it: it says of a file what evaluation says of it."""

import numpy as np
import pytest
import torch
from PIL import Image

from adu.data.decoded import eval_batch
from adu.errors import UserError
from adu.methods import build_method
from adu.serving.classifier import Classifier
from adu.serving.model import UnlearnedModel
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from tests.tiny import tiny_backbone, tiny_context

RUN = RunConfig.model_validate(
    {"forget": ["sketch"], "method": {"name": "adu", "n_ctx": 2}, "train": {"epochs": 1}}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="module")
def context(folder):
    return tiny_context(folder)


@pytest.fixture(scope="module")
def model(context):
    torch.manual_seed(0)
    return build_method(RUN.method, context.backbone, context.task(RUN.forget)).eval()


@pytest.fixture(scope="module")
def checkpoint(folder, context, model):
    (folder / "checkpoint").write_bytes(checkpoint_bytes(model, RUN, context))
    return str(folder / "checkpoint")


def watched(monkeypatch, model_class):
    """What models of a class are given, from now on."""
    given = []
    forward = model_class.forward
    monkeypatch.setattr(
        model_class, "forward", lambda self, images: given.append(images) or forward(self, images)
    )
    return given


def test_it_sees_what_evaluation_sees_to_the_bit(context, model, checkpoint, monkeypatch):
    files = [context.manifest.url + f"/../images/{name}" for name in context.test.image_ids]
    data = [open(file, "rb").read() for file in files]  # noqa: PTH123, SIM115 - read at once
    everything = range(len(context.test))
    images_BCHW = eval_batch(context.test, everything, context.backbone.transform)
    classifier = Classifier(checkpoint)
    given = watched(monkeypatch, UnlearnedModel)
    scores = classifier.scores(data)
    assert torch.equal(torch.cat(given), images_BCHW)
    with torch.no_grad():
        expected = model(images_BCHW).logits_BC.softmax(dim=-1).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert classifier.classes == context.classes


def test_images_are_prepared_where_the_model_is(checkpoint, monkeypatch, tmp_path):
    """The last steps are done on the model's device, in evaluation and here alike."""
    asked = []

    def noted(images, batch, transform, device):
        asked.append(device)
        return eval_batch(images, batch, transform, device)

    monkeypatch.setattr("adu.serving.classifier.eval_batch", noted)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert len(Classifier(checkpoint).scores([(tmp_path / "a.png").read_bytes()] * 2)) == 2
    assert asked == [torch.device("cpu")]


def test_no_files_are_no_scores(checkpoint):
    assert Classifier(checkpoint).scores([]).shape == (0, 3)


def test_a_file_that_is_no_image_is_named(checkpoint):
    with pytest.raises(UserError, match="image 0: is empty"):
        Classifier(checkpoint).scores([b""])


def test_another_backbone_than_its_own_is_refused(checkpoint, folder):
    other = tiny_backbone(folder / "other", seed=9)
    with pytest.raises(UserError, match=r"was trained on backbone .*; '.*other' has other weights"):
        Classifier(checkpoint, str(other))
    # The same one elsewhere is its own.
    same = tiny_backbone(folder / "same", seed=0)
    assert Classifier(checkpoint, str(same)).classes


def test_a_truncated_checkpoint_is_one_line(checkpoint, tmp_path):
    data = open(checkpoint, "rb").read()  # noqa: PTH123, SIM115
    (tmp_path / "part").write_bytes(data[:-5])
    with pytest.raises(UserError, match="part: is broken: "):
        Classifier(str(tmp_path / "part"))
