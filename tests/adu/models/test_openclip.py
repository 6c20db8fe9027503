"""Which open_clip architecture and weights a name stands for."""

import json
import os
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from adu import storage
from adu.errors import UserError
from adu.models.folder import save_folder
from adu.models.openclip import image_side, load_clip
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE, find_source, find_weights
from tests.tiny import CLASSES, MODEL, tiny_backbone


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        ("ViT-B-16-openai.safetensors", "ViT-B-16-quickgelu"),
        ("openai_clip_b16.pt", "ViT-B-16-quickgelu"),
        ("ViT-B-16-dfn2b.safetensors", "ViT-B-16-quickgelu"),
        ("laion2b.safetensors", "ViT-B-16"),
    ],
)
def test_weights_get_the_activation_that_the_tag_in_their_name_has(tmp_path, file, architecture):
    weights = tmp_path / file
    weights.write_bytes(b"weights")
    found = find_weights("ViT-B-16", str(weights))
    assert (found.architecture, found.file) == (architecture, str(weights))


def test_openais_weights_get_quickgelu_by_their_tag():
    found = find_weights("ViT-B-16", "openai")
    assert (found.architecture, found.tag) == ("ViT-B-16-quickgelu", "openai")


NOT_SQUARE = MODEL["vision_cfg"] | {"image_size": [32, 40]}
INCEPTION, OPENAI = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("architecture", "file", "mean", "resize_mode"),
    [
        ("ViT-B-16", "mine.safetensors", OPENAI, "shortest"),
        ("ViT-B-16-SigLIP", "mine.safetensors", INCEPTION, "squash"),
        ("ViT-B-16-SigLIP2", "mine.safetensors", INCEPTION, "squash"),
        ("PE-Core-B-16", "mine.safetensors", INCEPTION, "squash"),
        ("ViT-L-14", "my-ViT-L-14-openai.pt", OPENAI, "shortest"),
        ("ViT-L-14", "commonpool_xl_s13b_b90k.pt", OPENAI, "shortest"),
    ],
)
def test_a_file_of_weights_is_prepared_for_as_its_architecture_is(
    tmp_path, architecture, file, mean, resize_mode
):
    (tmp_path / file).write_bytes(b"weights")
    found = find_weights(architecture, str(tmp_path / file)).preprocess
    assert (found["mean"], found["resize_mode"]) == (mean, resize_mode)


def test_weights_that_could_be_prepared_for_in_two_ways_are_refused(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"ViT-L-14 differ in how images are prepared: put the tag"):
        find_weights("ViT-L-14", str(tmp_path / "mine.pt"))


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


def changed(folder, change):
    """A model folder with other weights."""
    weights = change(load_file(folder / WEIGHTS_FILE))
    save_file(weights, folder / WEIGHTS_FILE)


def without_weights(folder):
    (folder / WEIGHTS_FILE).unlink()


def truncated(folder):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])


def no_safetensors(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1")


def empty(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"")


def of_another_shape(folder):
    changed(folder, lambda w: w | {"visual.proj": torch.zeros(7, 7)})


def with_a_weight_missing(folder):
    changed(folder, lambda w: {k: v for k, v in w.items() if k != "visual.proj"})


def with_nan(folder):
    changed(folder, lambda w: w | {"visual.proj": w["visual.proj"] * float("nan")})


def with_infinity(folder):
    changed(folder, lambda w: w | {"ln_final.bias": w["ln_final.bias"] + float("inf")})


def configured(**values):
    def write(folder):
        config = json.loads((folder / CONFIG_FILE).read_text()) | values
        (folder / CONFIG_FILE).write_text(json.dumps(config))

    return write


def config_is_no_json(folder):
    (folder / CONFIG_FILE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "has open_clip_config.json but no open_clip_model.safetensors"),
        (truncated, "cannot be loaded: .*incomplete"),
        (no_safetensors, "cannot be loaded: "),
        (empty, "cannot be loaded: "),
        (of_another_shape, "cannot be loaded: .*size mismatch for visual.proj"),
        (with_a_weight_missing, 'cannot be loaded: .*Missing key.* "visual.proj"'),
        (with_nan, "its weight visual.proj holds NaN or infinity"),
        (with_infinity, "its weight ln_final.bias holds NaN or infinity"),
        (config_is_no_json, "open_clip_config.json is broken: "),
        (configured(model_cfg={}), "open_clip_config.json is broken: 'text_cfg'"),
        (configured(model_cfg=MODEL | {"text_cfg": None}), "is broken: text_cfg = None"),
        (configured(model_cfg={**MODEL, "embed_dim": "x"}), "cannot be loaded: "),
        (configured(preprocess_cfg={"resize_mode": "crop"}), "resize_mode = 'crop' .allowed: sho"),
        (configured(preprocess_cfg={"interpolation": "box"}), "interpolation = 'box' .allowed: b"),
        (configured(preprocess_cfg={"mean": [0.5]}), "mean = .0.5. .allowed: a number, or"),
        (
            configured(
                model_cfg=MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"image_size": [32, 40]}}
            ),
            "size = 32 x 40 .allowed: squares",
        ),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_one_line(tmp_path, damage, message):
    folder = tiny_backbone(tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=f"backbone '.*model': .*{message}") as raised:
        load_clip(str(folder), tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("key", ["visual.positional_embedding", "positional_embedding"])
@pytest.mark.parametrize("kind", ["folder", "safetensors", "pt", "pt of a training run"])
def test_positional_embeddings_of_another_size_are_refused(architecture, tmp_path, key, kind):
    """open_clip would resize them without a word."""
    vision, text = MODEL["vision_cfg"], MODEL["text_cfg"]
    larger = {"vision_cfg": vision | {"image_size": 48}, "text_cfg": text}
    if key == "positional_embedding":
        larger = {"vision_cfg": vision, "text_cfg": text | {"context_length": 20}}
    folder = tiny_backbone(tmp_path / "model", **larger)
    weights = load_file(folder / WEIGHTS_FILE)
    name = str(folder)
    if kind == "folder":
        configured(model_cfg=MODEL)(folder)
    elif kind == "safetensors":
        name = f"{architecture}:{folder / WEIGHTS_FILE}"
    else:
        prefix = "module." if kind == "pt of a training run" else ""
        saved = {f"{prefix}{key}": value for key, value in weights.items()}
        torch.save({"state_dict": saved} if prefix else saved, tmp_path / "weights.pt")
        name = f"{architecture}:{tmp_path / 'weights.pt'}"
    with pytest.raises(
        UserError, match=f"its weight {key} is (37|20) x .*, the architecture's (17|16)"
    ):
        load_clip(name, tmp_path)


def test_a_truncated_pt_file_is_one_line(architecture, tmp_path):
    known = load_clip(str(tiny_backbone(tmp_path / "model")), tmp_path).clip.state_dict()
    torch.save(known, tmp_path / "weights.pt")
    whole = (tmp_path / "weights.pt").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"hello"):
        (tmp_path / "weights.pt").write_bytes(data)
        with pytest.raises(UserError, match=r"weights.pt': cannot be loaded: [^\n]+$"):
            load_clip(f"{architecture}:{tmp_path / 'weights.pt'}", tmp_path)


def test_a_models_own_preparation_of_images_is_taken(tmp_path):
    folder = tiny_backbone(tmp_path / "model")
    own = {"mean": 0.5, "std": [0.1, 0.2, 0.3], "interpolation": "bilinear", "fill_color": 9}
    configured(preprocess_cfg=own | {"resize_mode": "longest"})(folder)
    transform = load_clip(str(folder), tmp_path).transform
    assert (transform.mean, transform.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert (transform.interpolation, transform.resize_mode) == ("bilinear", "longest")
    assert (transform.image_size, transform.fill) == (32, 9)


def test_a_path_below_the_home_folder_is_found(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_backbone(tmp_path / "model")
    known = load_file(folder / WEIGHTS_FILE)
    for name in ("~/model", f"{architecture}:~/model/{WEIGHTS_FILE}"):
        loaded = load_clip(name, tmp_path / "scratch").clip.state_dict()
        assert all(torch.equal(loaded[key], known[key]) for key in known)
    assert image_side("~/model") == 32


def test_no_weights_are_fetched_to_learn_a_models_size(tmp_path):
    url = f"memory://sizes/{tmp_path.name}"
    folder = tiny_backbone(tmp_path / "model")
    storage.write_bytes(f"{url}/{CONFIG_FILE}", (folder / CONFIG_FILE).read_bytes())
    storage.write_bytes(f"{url}/{WEIGHTS_FILE}", b"nobody reads this")
    assert image_side(url) == 32


def test_the_fingerprint_tells_weights_and_preparation_but_not_names(architecture, tmp_path):
    folder = tiny_backbone(tmp_path / "model", seed=1)
    one = load_clip(str(folder), tmp_path).fingerprint
    assert load_clip(f"{architecture}:{folder / WEIGHTS_FILE}", tmp_path).fingerprint == one
    assert load_clip(str(tiny_backbone(tmp_path / "other", seed=2)), tmp_path).fingerprint != one
    configured(preprocess_cfg={"resize_mode": "squash"})(folder)
    assert load_clip(str(folder), tmp_path).fingerprint != one


def test_a_saved_folder_is_the_same_model(architecture, tmp_path):
    file = tiny_backbone(tmp_path / "model", seed=5) / WEIGHTS_FILE
    (tmp_path / "saved").mkdir()
    save_folder(f"{architecture}:{file}", tmp_path / "saved")
    known, saved = (
        load_clip(name, tmp_path) for name in (f"{architecture}:{file}", str(tmp_path / "saved"))
    )
    assert saved.fingerprint == known.fingerprint
    assert saved.transform == known.transform


def test_classes_that_the_model_cannot_tell_apart_are_refused(tmp_path):
    backbone = load_clip(str(tiny_backbone(tmp_path / "model")), tmp_path)
    for first, second in (("t_shirt", "t shirt"), ("Mug", "mug"), (" cup ", "cup")):
        with pytest.raises(UserError, match=f"classes '{first}' and '{second}': have the same"):
            backbone.text_features(("fish", first, second), "a photo of a {class}.")
    assert len(backbone.text_features(CLASSES, "a photo of a {class}.")) == len(CLASSES)


def test_what_is_no_model_is_told_with_what_is_one(tmp_path):
    with pytest.raises(UserError, match="is neither 'demo', nor ARCH:WEIGHTS"):
        find_source(str(tmp_path))
    with pytest.raises(UserError, match="name its weights too, as ViT-B-16:WEIGHTS .tags of"):
        find_source("ViT-B-16")
    with pytest.raises(UserError, match="ViT-B-16:nothing': no such weights .a file, a URL, or"):
        find_source("ViT-B-16:nothing")
    assert find_source("demo").folder


@pytest.fixture
def hub(tmp_path, monkeypatch) -> str:
    """A repository of the hub as it lies in the hub's cache once it was fetched."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    tiny_backbone(snapshot, seed=6)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return str(snapshot)


def test_a_repository_of_the_hub_is_loaded_as_open_clip_loads_it(hub, tmp_path):
    configured(preprocess_cfg={"mean": 0.5, "resize_mode": "squash"})(Path(hub))
    name = "hf-hub:someone/tiny"
    loaded = load_clip(name, tmp_path)
    clip, _, _ = open_clip.create_model_and_transforms(name)
    known = clip.state_dict()
    assert all(torch.equal(loaded.clip.state_dict()[key], known[key]) for key in known)
    assert (loaded.transform.mean, loaded.transform.resize_mode) == ((0.5,) * 3, "squash")
    assert image_side(name) == 32
    (tmp_path / "saved").mkdir()
    save_folder(name, tmp_path / "saved")
    assert load_clip(str(tmp_path / "saved"), tmp_path).fingerprint == loaded.fingerprint


def test_a_repository_that_cannot_be_had_or_is_another_model_is_one_line(hub, tmp_path):
    with pytest.raises(UserError, match="backbone 'hf-hub:someone/other': .*cannot be had: "):
        load_clip("hf-hub:someone/other", tmp_path)
    configured(model_cfg=MODEL | {"text_cfg": MODEL["text_cfg"] | {"context_length": 20}})(
        Path(hub)
    )
    with pytest.raises(UserError, match="positional_embedding is 16 x .*, the architecture's 20"):
        load_clip("hf-hub:someone/tiny", tmp_path)
    (Path(hub) / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="backbone 'hf-hub:someone/tiny': cannot be fetched: "):
        load_clip("hf-hub:someone/tiny", tmp_path)
