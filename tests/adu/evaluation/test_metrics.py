"""Mem, For and H from counts; entropy and calibration against their formulas."""

import math

import numpy as np
import pytest
import torch

from adu.evaluation.metrics import calibration_error, entropy, harmonic_mean, scores_from_counts

DOMAINS = ["photo", "art", "sketch"]
# Two classes.
TOTAL_CD = np.array([[60, 20, 25], [40, 30, 25]])
CORRECT_CD = np.array([[55, 10, 10], [35, 20, 0]])
SKETCH_CD = np.array([[False, False, True]] * 2)


def test_scores_pool_the_images_of_each_side():
    scores = scores_from_counts(np.stack([CORRECT_CD, TOTAL_CD]), SKETCH_CD, DOMAINS)
    assert scores.mem == pytest.approx(120 / 150)
    assert scores.for_ == pytest.approx(40 / 50)
    assert scores.h == pytest.approx(2 * 0.8 * 0.8 / 1.6)
    assert scores.accuracy_by_domain == pytest.approx({"photo": 0.9, "art": 0.6, "sketch": 0.2})
    assert scores.n_by_domain == {"photo": 100, "art": 50, "sketch": 50}
    assert scores.as_dict().keys() == {"mem", "for", "h"}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_images_one_by_one(seed):
    """Whatever is forgotten: any cells of class and domain."""
    rng = np.random.default_rng(seed)
    forget_CD = rng.random((3, 4)) < 0.4
    images = [(*rng.integers((3, 4)), rng.random() < 0.7) for _ in range(97)]
    counts_2CD = np.zeros((2, 3, 4), int)
    for c, d, right in images:
        counts_2CD[:, c, d] += right, 1
    found = scores_from_counts(counts_2CD, forget_CD, list("abcd"))
    mem = np.mean([right for c, d, right in images if not forget_CD[c, d]])
    for_ = np.mean([not right for c, d, right in images if forget_CD[c, d]])
    assert found.mem == pytest.approx(mem, rel=1e-12)
    assert found.for_ == pytest.approx(for_, rel=1e-12)
    assert found.h == pytest.approx(1 / np.mean([1 / mem, 1 / for_]), rel=1e-12)


def test_harmonic_mean_of_zeros_is_zero():
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(1, 0) == 0


def test_scores_without_a_forget_image_are_an_error():
    with pytest.raises(ValueError, match="0 forget"):
        scores_from_counts(np.array([[[1, 0]]] * 2), np.array([[False, True]]), ["photo", "sketch"])


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_entropy_is_that_of_the_probabilities():
    logits_NC = np.random.default_rng(0).normal(0, 2, (50, 7))
    p_NC = softmax(logits_NC)
    expected = np.mean([-sum(p * math.log(p) for p in row) for row in p_NC])
    assert entropy(torch.tensor(logits_NC)) == pytest.approx(expected, rel=1e-12)


def test_entropy_at_its_ends():
    assert entropy(torch.zeros(3, 5)) == pytest.approx(math.log(5))
    assert entropy(torch.tensor([[1e4, 0.0, -1e4]])) == 0


def test_calibration_error_sums_the_gaps_of_fifteen_bins():
    rng = np.random.default_rng(1)
    logits_NC, class_N = rng.normal(0, 2, (300, 4)), rng.integers(0, 4, 300)
    p_NC = softmax(logits_NC)
    expected = 0.0
    for k in range(15):
        inside = (p_NC.max(axis=1) > k / 15) & (p_NC.max(axis=1) <= (k + 1) / 15)
        if inside.any():
            accuracy = np.mean(p_NC[inside].argmax(axis=1) == class_N[inside])
            expected += inside.mean() * abs(accuracy - p_NC[inside].max(axis=1).mean())
    ours = calibration_error(torch.tensor(logits_NC), torch.tensor(class_N))
    assert ours == pytest.approx(expected, rel=1e-12)


def test_a_model_that_is_sure_and_wrong_is_as_badly_calibrated_as_can_be():
    logits_NC = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    assert calibration_error(logits_NC, torch.tensor([1, 1])) == pytest.approx(1)
    assert calibration_error(logits_NC, torch.tensor([0, 0])) == pytest.approx(0)
