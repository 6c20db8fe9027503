"""What tests of models to be served share: a small context, and images for it."""

import pytest
import torch

from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def images_BCHW():  # noqa: N802 - a fixture is called like what it gives
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
