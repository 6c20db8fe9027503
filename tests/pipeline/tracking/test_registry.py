"""The registered model: loads without this working copy, and scores as the trained one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import mlflow
import numpy as np
import open_clip
import pytest
import torch
from mlflow import MlflowClient

from adu import storage
from adu.evaluation.metrics import harmonic_mean
from adu.methods import build_method
from adu.models.sources import WEIGHTS_FILE
from adu.serving.classifier import Classifier
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from pipeline.studies.goal import Goal
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.registry import model_name, register
from pipeline.tracking.server import sqlite_file
from tests.adu.data.test_preprocess import lines
from tests.pipeline.tracking.made_up import AGAIN_SEED, SEEDS, search_output
from tests.tiny import CLASSES, MODEL, tiny_context

SERVE = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
images = [open(file, "rb").read() for file in sys.argv[3:]]
scores = model.predict(pandas.DataFrame({"image": images}))
import adu
print(json.dumps({"scores": scores.to_dict("list"), "adu": adu.__file__}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, and a checkpoint of a model with random prompts."""
    folder = tmp_path_factory.mktemp("registry")
    context = tiny_context(folder)
    run = RunConfig(forget=("sketch",))
    torch.manual_seed(0)
    model = build_method(run.method, context.backbone, context.task(run.forget))
    (folder / "checkpoint.safetensors").write_bytes(checkpoint_bytes(model, run, context))
    return folder


def artifacts(server, data_set):
    return sqlite_file(server.uri).parent / "artifacts" / data_set


def registered(server, folder, **changes):
    """Registers the model of a made-up search; what it has written of that."""
    own = {"id": str(uuid.uuid4()), "register_models": True, "classes": CLASSES}
    truth = search_output(folder, trials=2, **{**own, **changes})
    mirror = Mirror(server, truth)
    mirror.sync()
    register(mirror)
    register(mirror)
    (study,) = truth.facts.studies
    return json.loads((folder / study.folder / "model.json").read_text())


@pytest.mark.parametrize(("again_h", "seed"), [(0.7, SEEDS[-1]), (0.9, AGAIN_SEED)])
def test_the_model_is_the_best_one_on_validation_images_also_that_of_the_search(
    tmp_path, again_h, seed
):
    truth = search_output(tmp_path, trials=2, register_models=True, again_h=again_h)
    (model,) = truth.models()
    assert (model.seed, model.checkpoint()) == (seed, b"weights")


def test_it_is_registered_once_and_serves_by_itself(trained, server, tmp_path):
    checkpoint = (trained / "checkpoint.safetensors").read_bytes()
    backbone = str(trained / "model")
    name, uri = "served", mlflow.get_tracking_uri()
    told = registered(
        server, tmp_path, name=name, checkpoint=checkpoint, backbone=backbone, data_set=name
    )
    assert (told["name"], told["version"], told["is_best"]) == ("served-without-sketch", "1", True)
    best = MlflowClient(server.uri).get_model_version_by_alias(told["name"], "best")
    # Of the best configuration's seeds, the one that is best on validation images.
    assert best.tags["seed"] == str(SEEDS[-1])
    assert float(best.tags["test_h"]) == pytest.approx(harmonic_mean(0.9, 0.8 + 1 / 100))
    assert best.tags["forget"] == "sketch" and best.tags["manifest_digest"] == "d" * 64
    assert "has unlearned the domain sketch of served" in best.description
    assert mlflow.get_tracking_uri() == uri, "MLflow's own settings were changed"

    # One of them is large and has thin lines: what is served sees it as evaluation does.
    lines(643, 217).save(tmp_path / "lines.png")
    images = [tmp_path / "lines.png", *sorted((trained / "images").glob("*/*/0.png"))[:3]]
    served = serve(tmp_path, server.uri, f"models:/{told['name']}@best", images)
    assert "code" in served["adu"], "the model came without its code"
    expected = Classifier(str(trained / "checkpoint.safetensors")).scores(
        [file.read_bytes() for file in images]
    )
    assert list(served["scores"]) == list(CLASSES)
    found = np.array([served["scores"][name] for name in CLASSES]).T
    np.testing.assert_allclose(found, expected, atol=1e-6)

    (folder,) = [file.parent for file in artifacts(server, "served").glob("**/MLmodel")]
    assert not list(folder.glob("*.pkl")), "loading it would unpickle something"
    assert "torch==" in (folder / "requirements.txt").read_text()


def test_the_alias_moves_to_a_better_model_alone(server, tmp_path):
    """Same images, a higher mean H, and the least Mem kept."""

    def move(place, **changes):
        told = registered(server, tmp_path / place, name="rules", **changes)
        return told["version"], told["is_best"], told["reason"]

    assert move("low mem", goal=Goal(min_mem=0.95)) == (
        *("1", False),
        "its Mem on test images, 90.0 %, is below 95.0 %",
    )
    assert move("domain lost", goal=Goal(min_mem_each=0.95)) == (
        *("2", False),
        "its accuracy on clipart, 70.2 %, is below 95.0 %",
    )
    assert move("first", best_h=0.7) == ("3", True, "")
    version, is_best, reason = move("worse", best_h=0.6)
    assert (version, is_best) == ("4", False)
    assert reason.startswith("version 3 has an H of 79.")
    version, is_best, reason = move("other images", best_h=0.9, digest="e" * 64)
    assert (version, is_best) == ("5", False) and "version 3 is of other images" in reason
    assert move("better", best_h=0.8) == ("6", True, "")


def test_no_two_models_have_one_name():
    assert model_name("tiny", ("photo", "sketch")) == "tiny-without-photo+sketch"
    names = [("a", ("b-without-c",)), ("a-without-b", ("c",)), ("a", ("b+c",)), ("a", ("b", "c"))]
    names += [("a", ("漢字",)), ("a", ("字漢",)), ("a", ("x" * 300,)), ("a", ("x" * 301,))]
    found = [model_name(*each) for each in names]
    assert len(set(found)) == len(names)
    for name in found:
        assert len(name) <= 250 and not set(name) & set("/:.%'\"")


@pytest.mark.parametrize("where", ["url", "file"])
def test_a_backbone_from_elsewhere_goes_along(trained, server, tmp_path, where):
    """Whoever serves the model may not reach the bucket or the file that it was trained from."""
    if where == "url":
        name = f"memory://registry/{tmp_path.name}"
        for part in (trained / "model").iterdir():
            storage.write_bytes(f"{name}/{part.name}", part.read_bytes())
    else:
        (tmp_path / "tiny-registry.json").write_text(json.dumps(MODEL))
        open_clip.add_model_config(tmp_path / "tiny-registry.json")
        name = f"tiny-registry:{trained / 'model' / WEIGHTS_FILE}"
    checkpoint = (trained / "checkpoint.safetensors").read_bytes()
    data_set = f"held-{where}"
    registered(server, tmp_path, checkpoint=checkpoint, backbone=name, data_set=data_set)
    (folder,) = artifacts(server, data_set).glob("**/artifacts/backbone")
    assert Classifier(str(trained / "checkpoint.safetensors"), str(folder)).classes == CLASSES


def serve(folder, uri, model, images):
    """Loads a model in a process that does not know this working copy."""
    site = folder / "site"
    site.mkdir()
    # The packages of this environment, without the link to the working copy.
    for entry in os.scandir(next(p for p in sys.path if p.endswith("site-packages"))):
        if "adu" not in entry.name.split(".")[0].split("_"):
            (site / entry.name).symlink_to(entry.path)
    command = [sys.executable, "-S", "-c", SERVE, uri, model, *map(str, images)]
    process = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])
