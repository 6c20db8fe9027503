"""The registered model: loads without this working copy, and scores as the trained one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from mlflow import MlflowClient

from adu import storage
from adu.methods import build_method
from adu.models.sources import WEIGHTS_FILE
from adu.serving.classifier import Classifier
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from pipeline.tracking.registry import log_model
from pipeline.tracking.tracker import model_name
from tests.adu.data.test_preprocess import lines
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


def test_it_is_registered_and_serves_by_itself(trained, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tiny", (tmp_path / "artifacts").as_uri())
    first, second = (client.create_run(experiment).info.run_id for _ in range(2))
    name = model_name("tiny", ("photo", "sketch"))
    assert name == "tiny-without-photo+sketch"
    checkpoint = (trained / "checkpoint.safetensors").read_bytes()
    # A study that is resumed after it has registered its model does not register another.
    for run_id, version in ((first, "1"), (first, "1"), (second, "2")):
        arguments = (name, checkpoint, CLASSES, str(trained / "model"))
        assert log_model(uri, run_id, *arguments, {"forget": "photo+sketch"}) == version
    best = client.get_model_version_by_alias(name, "best")
    assert (str(best.version), best.tags) == ("2", {"forget": "photo+sketch"})
    assert "has unlearned the domain photo and sketch" in best.description

    # One of them is large and has thin lines: what is served sees it as evaluation does.
    lines(643, 217).save(tmp_path / "lines.png")
    images = [tmp_path / "lines.png", *sorted((trained / "images").glob("*/*/0.png"))[:3]]
    served = serve(tmp_path, uri, f"models:/{name}@best", images)
    assert "code" in served["adu"], "the model came without its code"
    expected = Classifier(str(trained / "checkpoint.safetensors")).scores(
        [file.read_bytes() for file in images]
    )
    assert list(served["scores"]) == list(CLASSES)
    found = np.array([served["scores"][name] for name in CLASSES]).T
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("where", ["url", "file"])
def test_a_backbone_from_elsewhere_goes_along(trained, tmp_path, where):
    """Whoever serves the model may not reach the bucket or the file that it was trained from."""
    if where == "url":
        name = f"memory://registry/{tmp_path.name}"
        for part in (trained / "model").iterdir():
            storage.write_bytes(f"{name}/{part.name}", part.read_bytes())
    else:
        (tmp_path / "tiny-registry.json").write_text(json.dumps(MODEL))
        open_clip.add_model_config(tmp_path / "tiny-registry.json")
        name = f"tiny-registry:{trained / 'model' / WEIGHTS_FILE}"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tiny", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    checkpoint = (trained / "checkpoint.safetensors").read_bytes()
    log_model(uri, run_id, "tiny", checkpoint, CLASSES, name, {})
    (folder,) = (tmp_path / "artifacts").glob("**/artifacts/backbone")
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
