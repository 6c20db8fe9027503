"""Which open_clip architecture and weights a name stands for."""

import json
import os

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from adu import storage
from adu.errors import UserError
from adu.openclip import WEIGHTS_FILE, find_architecture, load_clip
from tests.tiny import MODEL, tiny_backbone


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


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A tiny architecture that open_clip knows by name, as it knows ViT-B-16."""
    file = tmp_path_factory.mktemp("architecture") / "tiny-vit.json"
    file.write_text(json.dumps(MODEL))
    open_clip.add_model_config(file)
    return "tiny-vit"


def test_weights_of_a_pt_file_are_those_of_the_model(architecture, tmp_path):
    folder = tiny_backbone(tmp_path / "model", seed=3)
    known = load_clip(str(folder), tmp_path).clip.state_dict()
    # As open_clip's own training writes it.
    torch.save({"state_dict": known, "epoch": 1}, tmp_path / "weights.pt")
    loaded = load_clip(f"{architecture}:{tmp_path / 'weights.pt'}", tmp_path).clip.state_dict()
    assert loaded.keys() == known.keys()
    assert all(torch.equal(loaded[name], known[name]) for name in known)


@pytest.mark.parametrize("where", ["file", "url"])
def test_weights_come_from_a_safetensors_file_or_any_url(architecture, tmp_path, where):
    folder = tiny_backbone(tmp_path / "model", seed=4)
    file = folder / WEIGHTS_FILE
    url = str(file)
    if where == "url":
        url = f"memory://weights/{tmp_path.name}/{WEIGHTS_FILE}"
        storage.write_bytes(url, file.read_bytes())
        folder_url = f"memory://folder/{tmp_path.name}"
        for part in folder.iterdir():
            storage.write_bytes(f"{folder_url}/{part.name}", part.read_bytes())
        (tmp_path / "folder").mkdir()
        known = load_clip(folder_url, tmp_path / "folder").clip.state_dict()
    else:
        known = load_file(file)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    loaded = load_clip(f"{architecture}:{url}", scratch).clip.state_dict()
    assert all(torch.equal(loaded[name], known[name]) for name in load_file(file))


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_a_pt_file_is_ever_run(architecture, tmp_path):
    mark = tmp_path / "mark"
    torch.save({"state_dict": Evil(f"touch {mark}")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt': cannot be loaded"):
        load_clip(f"{architecture}:{tmp_path / 'evil.pt'}", tmp_path)
    assert not mark.exists()
