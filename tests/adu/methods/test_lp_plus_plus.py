"""LP++: start, steps and a whole training against its formulas, written anew in float64."""

import numpy as np
import pytest
import torch

from adu.methods.lp_plus_plus import step_sizes
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("lp"))


def step_sizes_64(features, text, weights):
    """4 over the largest eigenvalue of the weighted Gram matrix, and over the largest sum."""
    rows = np.sqrt(weights)[:, None] * features
    largest_eigenvalue = np.linalg.svd(rows, compute_uv=False)[0] ** 2
    sums = [
        sum(a * float(f @ t) ** 2 for a, f in zip(weights, features, strict=True)) for t in text
    ]
    return 4 / largest_eigenvalue, 4 / max(sums)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_step_sizes_are_the_inverse_lipschitz_constants(n):
    rng = np.random.default_rng(n)
    features, text, weights = rng.normal(size=(n, 8)), rng.normal(size=(3, 8)), rng.random(n)
    found = step_sizes(torch.tensor(features), torch.tensor(text), torch.tensor(weights))
    of_weight, of_alpha = step_sizes_64(features, text, weights)
    assert found["weight_CE"] == pytest.approx(of_weight, rel=1e-10)
    assert found["alpha_C"] == pytest.approx(of_alpha, rel=1e-10)


def train_64(features, text, classes, retain, n_steps):
    """LP++ with L_memorize + L_forget: gradients by hand, since both are softmax losses."""
    n, n_classes = len(features), len(text)
    one_hot = np.eye(n_classes)[classes]
    weight = (one_hot * retain[:, None]).T @ features
    means = [np.mean(features[retain & (classes == c)] @ text[c]) for c in range(n_classes)]
    alpha = np.full(n_classes, 250 * np.mean(means))
    share = np.where(retain, 1 / retain.sum(), 1 / (n - retain.sum()))
    target = np.where(retain[:, None], one_hot, 1 / n_classes)
    lr_weight, lr_alpha = step_sizes_64(features, text, share)
    speed = np.zeros_like(weight)
    for step in range(n_steps):
        logits = features @ (weight + alpha[:, None] * text).T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = share[:, None] * (p / p.sum(axis=1, keepdims=True) - target)
        speed = 0.9 * speed + error.T @ features
        if step % 10 == 9:
            alpha = alpha - lr_alpha * (error * (features @ text.T)).sum(axis=0)
        weight = weight - lr_weight * speed
    return weight, alpha


def test_a_whole_training_is_that_of_the_formulas(context):
    values = {"forget": ["sketch"], "method": {"name": "lp++", "iterations": 25}}
    trainer = Trainer(RunConfig.model_validate(values | {"train": {"epochs": 3}}), context)
    assert len(list(trainer.epochs())) == 3
    weight, alpha = train_64(
        context.train_features.double().numpy(),
        context.text_CE.double().numpy(),
        context.train.class_N.numpy(),
        context.train.domain_N.numpy() != context.domains.index("sketch"),
        n_steps=25,
    )
    found = trainer.model
    np.testing.assert_allclose(found.weight_CE.detach().numpy(), weight, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(found.alpha_C.detach().numpy(), alpha, rtol=1e-4)


def test_more_epochs_than_steps_still_have_one_each(context):
    values = {"forget": ["sketch"], "method": {"name": "lp++", "iterations": 2}}
    trainer = Trainer(RunConfig.model_validate(values | {"train": {"epochs": 5}}), context)
    assert [report.epoch for report in trainer.epochs()] == [1, 2, 3, 4, 5]
