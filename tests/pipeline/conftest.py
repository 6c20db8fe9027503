"""Fixtures that tests of the commands share."""

import pytest

from tests.tiny import tiny_images


@pytest.fixture
def images(tmp_path):
    """A folder of 36 images."""
    return tiny_images(tmp_path / "images", per_cell=4)
