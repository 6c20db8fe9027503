"""`pipeline/prove.py`: what it keeps, shows and logs, and that it does nothing twice."""

import json
import shutil

import pytest
import torch
from mlflow import MlflowClient

from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.methods import build_method
from adu.models.backbone import BackboneConfig
from adu.training.checkpoint import checkpoint_bytes
from pipeline.prove import main
from tests.adu.evidence.subjects import tiny_run
from tests.tiny import tiny_backbone, tiny_manifest

SHORT = {
    "relearning": {"shots": [1], "at_steps": [0, 1]},
    "benign": {"at_steps": [0, 1]},
    "soft_prompt": {"shots": [1], "steps": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a manifest, and checkpoints of two seeds that know two of its three classes."""
    folder = tmp_path_factory.mktemp("prove")
    data = DataConfig(manifest=str(tiny_manifest(folder)), shots=2, val_shots=1, classes="base")
    backbone = BackboneConfig(name=str(tiny_backbone(folder / "model")))
    context = load_context(ContextConfig(backbone=backbone, data=data), torch.device("cpu"))
    for seed in (0, 1):
        run = tiny_run(seed=seed)
        torch.manual_seed(seed)
        model = build_method(run.method, context.backbone, context.task(run.forget))
        file = folder / f"seed-{seed}.safetensors"
        file.write_bytes(checkpoint_bytes(model, run, context))
    return folder


def arguments(folder, tmp_path):
    return [
        *("--checkpoint", str(folder / "seed-0.safetensors")),
        *("--quick", "--battery", json.dumps(SHORT), "--output", str(tmp_path / "out")),
        *("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
    ]


def test_it_says_keeps_and_logs_what_it_finds_and_goes_on(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path)) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "evidence.json").read_text())
    page = (tmp_path / "out" / "evidence.html").read_text()
    assert figures["verdict"] in page
    for text in ("trained part left out", "never shown", "knows nothing", "What was not tested"):
        assert text in page
    assert "A quick proof" in page
    assert "only one class that was not trained on" in page
    assert "39/52" in out and "52/52" in out
    assert figures["standings"].keys() == {"baseline", "untouched", "knows_nothing", "never_shown"}
    assert figures["standings"]["untouched"]["distance"]["mean"] == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], "tags.stage = 'prove'")
    assert run.data.metrics["distance"] == figures["standings"]["baseline"]["distance"]["mean"]
    assert run.data.tags["verdict"] == figures["verdict"]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"evidence.html", "figures.json"}

    removed = tmp_path / "out" / "outcomes" / "baseline-seed-0" / "words.json"
    removed.unlink()
    another = ["--checkpoint", str(folder / "seed-1.safetensors")]
    assert main([*arguments(folder, tmp_path), *another]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    done = [line for line in lines if "was there" not in line]
    # What was removed, and 13 attacks on a further seed of the model and of its reference.
    assert len(lines) == 78 and len(done) == 1 + 2 * 13
    figures = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert figures["standings"]["baseline"]["kept"]["n"] == 2
    assert figures["standings"]["baseline"]["kept"]["half_width"] is not None


def test_mistakes_are_one_line_and_nothing_is_written(folder, tmp_path, capsys):
    shutil.copy(folder / "seed-0.safetensors", tmp_path / "again.safetensors")
    again = ["--checkpoint", str(tmp_path / "again.safetensors")]
    unknown = ["--never-saw", str(tmp_path / "nowhere")]
    for more, message in ((again, "seed 0 is there already"), (unknown, "nowhere")):
        assert main([*arguments(folder, tmp_path), *more]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
