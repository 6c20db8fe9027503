"""Which open_clip architecture and weights a name stands for."""

import pytest

from adu.openclip import find_architecture


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        ("ViT-B-16-openai.safetensors", "ViT-B-16-quickgelu"),
        ("openai_clip_b16.pt", "ViT-B-16-quickgelu"),
        ("laion2b.safetensors", "ViT-B-16"),
    ],
)
def test_openais_weights_get_quickgelu_from_a_file_too(tmp_path, file, architecture):
    weights = tmp_path / file
    weights.write_bytes(b"weights")
    found = find_architecture("ViT-B-16", str(weights), tmp_path / "scratch")
    assert found == (architecture, str(weights))


def test_openais_weights_get_quickgelu_by_their_tag(tmp_path):
    assert find_architecture("ViT-B-16", "openai", tmp_path) == ("ViT-B-16-quickgelu", "openai")
