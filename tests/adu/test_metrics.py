"""Mem, For and H from counts."""

import pytest

from adu.metrics import harmonic_mean, scores_from_counts

TOTAL = {"photo": 100, "art": 50, "sketch": 50}
CORRECT = {"photo": 90, "art": 30, "sketch": 10}


def test_scores_pool_the_images_of_each_side():
    scores = scores_from_counts(CORRECT, TOTAL, ["sketch"])
    assert scores.mem == pytest.approx(120 / 150)
    assert scores.for_ == pytest.approx(40 / 50)
    assert scores.h == pytest.approx(2 * 0.8 * 0.8 / 1.6)
    assert scores.accuracy_by_domain == pytest.approx({"photo": 0.9, "art": 0.6, "sketch": 0.2})
    assert scores.as_dict().keys() == {"mem", "for", "h"}


def test_harmonic_mean_of_zeros_is_zero():
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(1, 0) == 0


def test_scores_without_a_forget_image_are_an_error():
    with pytest.raises(ValueError, match="0 forget"):
        scores_from_counts({"photo": 1, "sketch": 0}, {"photo": 1, "sketch": 0}, ["sketch"])
