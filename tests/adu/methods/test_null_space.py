"""Null-space removal: what it removes, and that it trains, saves and loads as other methods do."""

import numpy as np
import pytest
import scipy.linalg
import torch

from adu.evaluation.evaluate import evaluate_images
from adu.methods.null_space import class_scatter
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


def trainer(context, **options):
    method = {"name": "null_space", **options}
    return Trainer(RunConfig.model_validate({"forget": ["sketch"], "method": method}), context)


def test_it_removes_what_tells_the_forgotten_classes_and_not_the_others(context):
    """Against scipy's generalised eigenvectors, in float64."""
    model = trainer(context, directions=2, ridge=0.5).model
    features_NE = context.train_features.double().numpy()
    class_N, domain_N = context.train.class_N.numpy(), context.train.domain_N.numpy()

    def scatter(mask_N):
        means = [features_NE[mask_N & (class_N == c)].mean(axis=0) for c in np.unique(class_N)]
        centred = np.stack(means) - np.mean(means, axis=0)
        return centred.T @ centred / len(means)

    forgotten_N = domain_N == context.domains.index("sketch")
    retain_EE = scatter(~forgotten_N)
    ridge_EE = 0.5 * np.trace(retain_EE) / len(retain_EE) * np.eye(len(retain_EE))
    _, vectors = scipy.linalg.eigh(scatter(forgotten_N), retain_EE + ridge_EE)
    expected_ER = np.linalg.qr(vectors[:, -2:])[0]
    removed_ER = model.removed_ER.double().numpy()
    # The same space, whatever its basis.
    np.testing.assert_allclose(removed_ER @ removed_ER.T, expected_ER @ expected_ER.T, atol=1e-4)
    images_BCHW = torch.randn(3, 3, 32, 32)
    assert (model.image_features(images_BCHW) @ model.removed_ER).abs().max() < 1e-6


def test_nothing_is_trained_and_a_checkpoint_brings_it_back(context, tmp_path):
    run = trainer(context)
    assert list(run.epochs()) == []
    file = tmp_path / "model.safetensors"
    file.write_bytes(checkpoint_bytes(run.model, run.run, context))
    model, _ = load_checkpoint(str(file), context)
    assert torch.equal(model.removed_ER, run.model.removed_ER)
    scores = evaluate_images(model, context, context.val, ("sketch",))
    assert scores == evaluate_images(run.model, context, context.val, ("sketch",))


def test_scatter_of_a_single_class_is_nothing():
    assert class_scatter(torch.randn(4, 3), torch.zeros(4)).abs().max() == 0
