"""Fixtures that tests of the commands share."""

from pathlib import Path

import pytest

from tests.tiny import tiny_backbone, tiny_images, tiny_manifest


@pytest.fixture
def images(tmp_path):
    """A folder of 36 images."""
    return tiny_images(tmp_path / "images", per_cell=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a model and a manifest."""
    folder = tmp_path_factory.mktemp("search")
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    return folder
