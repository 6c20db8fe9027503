"""LP++'s step sizes and start against the paper's formulas, and by finite differences."""

import numpy as np
import pytest
import torch

from adu.methods.lp_plus_plus import LpPlusPlusConfig, step_sizes
from adu.trainer import RunConfig, TrainConfig, Trainer
from tests.tiny import tiny_context

RNG = np.random.default_rng(0)


def features_64(n=7, e=5):
    rows = RNG.normal(size=(n, e))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_step_sizes_are_the_inverse_lipschitz_constants():
    features, text = features_64(9), features_64(4)
    weight = RNG.random(9)
    gram = sum(a * np.outer(f, f) for a, f in zip(weight, features, strict=True))
    # The spectral norm by power iteration.
    v = np.ones(5)
    for _ in range(500):
        v = gram @ v / np.linalg.norm(gram @ v)
    by_class = [
        sum(a * float(f @ t) ** 2 for a, f in zip(weight, features, strict=True)) for t in text
    ]
    found = step_sizes(*(torch.tensor(x) for x in (features, text, weight)))
    assert found["weight_CE"] == pytest.approx(4 / (v @ gram @ v), rel=1e-9)
    assert found["alpha_C"] == pytest.approx(4 / max(by_class), rel=1e-9)


def test_no_direction_of_one_class_curves_more_than_the_bound():
    """The bound that the step size inverts, seen from the loss itself."""
    features, n_classes = features_64(8), 3
    classes = RNG.integers(0, n_classes, 8)
    size = step_sizes(torch.tensor(features), torch.tensor(features[:3]), torch.full((8,), 1 / 8))[
        "weight_CE"
    ]

    def loss(w):
        logits = features @ w.T
        log_sum = np.log(np.exp(logits).sum(axis=1))
        return float((log_sum - logits[np.arange(8), classes]).mean())

    step = 1e-3
    for _ in range(50):
        w = RNG.normal(size=(n_classes, 5))
        direction = np.zeros_like(w)
        direction[RNG.integers(n_classes)] = RNG.normal(size=5)
        direction /= np.linalg.norm(direction)
        around = loss(w + step * direction) + loss(w - step * direction) - 2 * loss(w)
        assert around / step**2 <= 1 / size + 1e-6


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


def test_it_starts_from_retain_class_means_and_the_zero_shot_scale(context):
    run = RunConfig(forget=("sketch",), method=LpPlusPlusConfig())
    model = Trainer(run, context).model
    scale = context.backbone.clip.logit_scale.exp().item()
    assert model.alpha_C.tolist() == pytest.approx([scale] * 3)
    sketch = context.domains.index("sketch")
    rows = [
        i
        for i in range(len(context.train))
        if context.train.class_N[i] == 1 and context.train.domain_N[i] != sketch
    ]
    mean_E = context.train_features[rows].double().mean(dim=0)
    torch.testing.assert_close(model.weight_CE[1].double(), mean_E, atol=1e-6, rtol=0)


def test_its_step_sizes_are_neither_scheduled_nor_decayed(context):
    train = TrainConfig(epochs=2, batch_size=18, warmup_epochs=1)
    run = RunConfig(forget=("sketch",), method=LpPlusPlusConfig(), train=train)
    trainer = Trainer(run, context)
    reports = list(trainer.epochs())
    groups = trainer._optimizer.param_groups
    assert [g["lr"] for g in groups] == list(trainer.model.step_sizes().values())
    assert {g["weight_decay"] for g in groups} == {0}
    assert reports[1].losses["total"] < reports[0].losses["total"]
