"""Images of any size lie side by side, in memory and in a file, and come back as they were."""

import numpy as np
import pytest

from adu.data import pixels
from adu.data.pixels import map_pixels, pixels_in_memory, write_pixels


def images_of(sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


@pytest.mark.parametrize(
    "sizes",
    [[(4, 4)] * 5, [(2, 2), (9, 3), (40, 50), (1, 1)], [(40, 50), (1, 1), (1, 1)], []],
    ids=["alike", "larger than the first", "smaller than the first", "none"],
)
@pytest.mark.parametrize("most_at_first", [1, 2**28])
def test_images_come_back_in_whatever_order_they_came(sizes, most_at_first, tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOST_AT_FIRST", most_at_first)
    images = images_of(sizes)
    arrived = list(enumerate(images))[::-1]
    write_pixels(tmp_path / "pixels", iter(arrived), len(images))
    for kept in (pixels_in_memory(iter(arrived), len(images)), map_pixels(tmp_path / "pixels")):
        assert [kept.image(i).tolist() for i in range(len(images))] == [i.tolist() for i in images]
        # Nothing is held beside them.
        assert kept.flat.size == sum(image.size for image in images)
