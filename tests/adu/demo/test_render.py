"""The demo's pictures: the same everywhere, and different where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from adu.demo.render import CLASSES, DOMAINS, render


def test_there_are_enough_classes_and_four_domains():
    assert len(CLASSES) >= 8
    assert DOMAINS == ("photo", "painting", "clipart", "sketch")


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_picture_depends_on_its_name_and_seed_alone(domain):
    first = np.asarray(render(domain, "car", 3, seed=7))
    for other in range(3):
        render(domain, "tree", other, seed=1)
    assert np.array_equal(first, np.asarray(render(domain, "car", 3, seed=7)))
    assert first.shape == (64, 64, 3)
    for different in (
        render(domain, "car", 4, seed=7),
        render(domain, "car", 3, seed=8),
        render(domain, "cup", 3, seed=7),
    ):
        assert not np.array_equal(first, np.asarray(different))


def test_sketches_have_the_least_colour():
    def saturation(domain: str) -> float:
        pictures = [np.asarray(render(domain, name, 0, 0), dtype=float) for name in CLASSES]
        return float(np.mean([np.ptp(picture, axis=2).mean() for picture in pictures]))

    others = [saturation(domain) for domain in DOMAINS if domain != "sketch"]
    assert saturation("sketch") < 0.7 * min(others)
