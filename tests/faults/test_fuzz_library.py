"""Ten thousand spoilt inputs of the library: each is one line or a right result.

Never a traceback, never more than a gigabyte of memory.
"""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import adu
from adu.config import parse_config
from adu.context import ContextConfig, open_context
from adu.data.decoded import eval_batch, select_images
from adu.data.manifest import CARD_FILE
from adu.models.openclip import load_clip
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE
from adu.serving.model import assemble
from adu.training.checkpoint import CARD_KEY, read_card, serialised
from adu.training.config import RunConfig
from tests.faults.test_fuzz_data import TOKENS, outcome
from tests.tiny import tiny_backbone, tiny_manifest

MOST_BYTES = 2**30
STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


def tried(n):
    """So many inputs, other ones each time; hypothesis prints how to repeat one that fails."""
    return settings(
        max_examples=n,
        derandomize=False,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def spoilt(draw, whole):
    """Some bytes with one to four places changed, cut or filled."""
    data = whole
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 40, len(data))))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        data = data[:start] + new + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["adu", "lp++", "sketch", "s3://b/x", "~", "a:b", "{class}", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@st.composite
def changed(draw, document):
    """A JSON document with one to three values replaced, removed or added, at any depth."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while place and draw(st.booleans()):
            inner = [key for key in keys(place) if isinstance(place[key], dict | list)]
            if not inner:
                break
            place = place[draw(st.sampled_from(inner))]
        if isinstance(place, dict) and draw(st.integers(0, 5)) == 0:
            place[draw(st.text(max_size=10))] = draw(VALUES)
        elif place:
            key = draw(st.sampled_from(keys(place)))
            if draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(VALUES)
    return document


def keys(place):
    return sorted(place) if isinstance(place, dict) else list(range(len(place)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def manifest(folder):
    return tiny_manifest(folder, per_cell=4)


@pytest.fixture(scope="module")
def model(folder, manifest):
    backbone = adu.load_backbone(str(tiny_backbone(folder / "model")), "cpu")
    options = {"name": "adu", "n_ctx": 2, "depth": 2}
    return adu.unlearn(manifest, "sketch", backbone, method=options, epochs=1, shots=1, val_shots=1)


@pytest.fixture(autouse=True)
def at_most_a_gigabyte(model):
    """No input makes this process larger than that by a gigabyte, not for a moment."""
    RESET_PEAK.write_text("5")
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_BYTES


def peak_bytes():
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return int(kib) * 1024


def encoded():
    """A picture in every format that is read, in several modes, and one as large as is allowed."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    files = []
    for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA", "DDS"):
        for mode in ("RGB", "RGBA", "L", "P", "I;16", "CMYK"):
            buffer = io.BytesIO()
            try:
                picture.convert(mode).save(buffer, format_)
            except (OSError, ValueError):
                continue  # not every format has every mode
            files.append(buffer.getvalue())
    return files


def test_images(model):
    classifier, files = adu.Classifier(model), encoded()

    @tried(2500)
    @given(st.sampled_from(files).flatmap(spoilt))
    def check(data):
        scores_BC = outcome(data[:80], lambda: classifier.scores([data]))
        assert scores_BC is None or scores_BC.sum() == pytest.approx(1, abs=1e-4)

    check()


def check_model(data, backbone):
    """A checkpoint on its backbone: a model that gives finite scores, or none."""
    model = assemble(data, "x", read_card(data, "x"), backbone)
    size = model.transform.image_size
    with torch.no_grad():
        logits_BC = model(torch.zeros(1, 3, size, size)).logits_BC
    assert logits_BC.shape == (1, len(model.classes))
    return logits_BC


def test_checkpoints(model):
    whole = serialised(model.method, model.card)
    backbone = model.method.backbone

    @tried(2500)
    @given(spoilt(whole))
    def check(data):
        outcome(data[:80], lambda: check_model(data, backbone))

    check()


def test_cards_of_checkpoints(model):
    whole = serialised(model.method, model.card)
    tensors = safetensors.torch.load(whole)
    card = read_card(whole, "x").model_dump(mode="json", by_alias=True)
    backbone = model.method.backbone

    @tried(1500)
    @given(changed(card))
    def check(values):
        data = safetensors.torch.save(tensors, {CARD_KEY: json.dumps(values)})
        outcome(values, lambda: check_model(data, backbone))

    check()


def test_configurations():
    run = RunConfig.model_validate({"forget": ["sketch"]}).model_dump(mode="json", by_alias=True)
    context = ContextConfig().model_dump(mode="json")

    @tried(2000)
    @given(st.sampled_from([(RunConfig, run), (ContextConfig, context)]).flatmap(both))
    def check(kind_and_values):
        kind, values = kind_and_values
        config = outcome(values, lambda: parse_config(kind, values, "x"))
        if config is not None:
            written = config.model_dump(mode="json", by_alias=True)
            assert parse_config(kind, written, "x") == config

    check()


def both(kind_and_values):
    kind, values = kind_and_values
    return st.tuples(st.just(kind), changed(values))


def test_manifests(manifest, model, folder):
    copy = shutil.copytree(manifest, folder / "copy")
    card = json.loads((manifest / CARD_FILE).read_text())
    (file,) = (copy / "rows").iterdir()
    rows = file.read_bytes()

    def use():
        images = adu.open_images(copy)
        values = {"data": {"manifest": str(copy), "shots": 1, "val_shots": 1}}
        config = parse_config(ContextConfig, values, "x")
        selected = select_images(images, config.data)
        device = torch.device("cpu")
        context = open_context(config, selected, device, backbone=model.method.backbone)
        context.task(("sketch",))
        return eval_batch(context.val, [0], context.backbone.transform)

    @tried(1000)
    @given(changed(card) | st.none(), spoilt(rows))
    def check(values, spoilt_rows):
        (copy / CARD_FILE).write_text(json.dumps(card if values is None else values))
        file.write_bytes(spoilt_rows if values is None else rows)
        outcome(values, use)

    check()


def test_backbones(model, folder, tmp_path):
    whole = folder / "model"
    config = json.loads((whole / CONFIG_FILE).read_text())
    config["preprocess_cfg"] = {"mean": 0.5, "size": 32, "resize_mode": "squash"}
    weights = (whole / WEIGHTS_FILE).read_bytes()
    head = weights[:3000]

    @tried(500)
    @given(changed(config) | st.none(), spoilt(head))
    def check(values, spoilt_head):
        kept = config if values is None else values
        (tmp_path / CONFIG_FILE).write_text(json.dumps(kept))
        changed_weights = spoilt_head + weights[len(head) :]
        (tmp_path / WEIGHTS_FILE).write_bytes(changed_weights if values is None else weights)
        outcome(values, lambda: load_clip(str(tmp_path), tmp_path))

    check()
