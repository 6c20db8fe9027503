"""`pipeline/evaluate.py`: what it shows of a checkpoint, and how it refuses what cannot be."""

import json
import shutil
from statistics import mean, stdev

import pytest
import torch
from mlflow import MlflowClient

from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.data.manifest import CARD_FILE, load_manifest
from adu.data.writing import write_manifest
from adu.methods import build_method
from adu.models.backbone import BackboneConfig
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from pipeline.evaluate import main
from tests.tiny import tiny_backbone, tiny_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a manifest, and a checkpoint that knows the base classes and two domains alone."""
    folder = tmp_path_factory.mktemp("evaluate")
    data = DataConfig(
        manifest=str(tiny_manifest(folder)), classes="base", unseen_domains=("clipart",)
    )
    backbone = BackboneConfig(name=str(tiny_backbone(folder / "model")))
    context = load_context(ContextConfig(backbone=backbone, data=data), torch.device("cpu"))
    for file, method, seed in (
        ("checkpoint", "baseline", 0),
        ("seed-1", "baseline", 1),
        ("maple", {"name": "maple", "depth": 1}, 1),
    ):
        values = {"forget": ["sketch"], "method": method, "train": {"seed": seed}}
        run = RunConfig.model_validate(values)
        torch.manual_seed(seed)
        model = build_method(run.method, context.backbone, context.task(run.forget))
        (folder / f"{file}.safetensors").write_bytes(checkpoint_bytes(model, run, context))
    return folder


def arguments(folder, tmp_path):
    return [
        *("--checkpoint", str(folder / "checkpoint.safetensors")),
        *("--manifest", str(folder / "manifest"), "--output", str(tmp_path / "figures.json")),
        *("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
    ]


def test_it_shows_logs_and_keeps_every_figure(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path)) == 0
    out = capsys.readouterr().out
    for text in ("sketch (forget)", "clipart (unseen)", "classes not trained on", "linear probe"):
        assert text in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    (tuned,) = figures["baseline"]
    assert tuned["novel_classes"].keys() == {"mem", "for", "h"}
    assert tuned["unseen_domains"].keys() == {"clipart"}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], "tags.method = 'baseline'")
    assert run.data.metrics["test/h"] == tuned["h"]
    assert run.data.metrics["template/class/mem"] == tuned["by_template"]["{class}"]["mem"]
    assert run.data.metrics["forget/entropy"] == tuned["forget"]["entropy"]


def test_several_seeds_give_means_and_standard_deviations(folder, tmp_path, capsys):
    another = str(folder / "seed-1.safetensors")
    assert main([*arguments(folder, tmp_path), "--checkpoint", another]) == 0
    out = capsys.readouterr().out
    each = json.loads((tmp_path / "figures.json").read_text())["baseline"]
    entropies = [figures["forget"]["entropy"] for figures in each]
    assert len(set(entropies)) == 2
    assert f"{mean(entropies):.2f} ± {stdev(entropies):.2f}" in out
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(client.search_runs(["1"], "tags.method = 'baseline'")) == 2


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("maple", "is of another run than"),
        ("checkpoint", "seed 0 is there already"),
    ],
)
def test_checkpoints_that_are_not_seeds_of_one_run_are_refused(
    folder, tmp_path, capsys, file, message
):
    another = str(folder / f"{file}.safetensors")
    assert main([*arguments(folder, tmp_path), "--checkpoint", another]) == 2
    assert f"checkpoint {another}: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def damaged(folder, tmp_path, capsys, *more):
    """What it says of a checkpoint that cannot be used, in one line."""
    assert main([*arguments(folder, tmp_path)[2:], *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_truncated_checkpoint_is_one_line(folder, tmp_path, capsys):
    whole = (folder / "checkpoint.safetensors").read_bytes()
    (tmp_path / "part").write_bytes(whole[:-9])
    line = damaged(folder, tmp_path, capsys, "--checkpoint", str(tmp_path / "part"))
    assert line.startswith(f"error: checkpoint {tmp_path / 'part'}: is broken: ")


def test_another_backbone_than_it_was_trained_on_is_one_line(folder, tmp_path, capsys):
    other = tiny_backbone(tmp_path / "other", seed=1)
    checkpoint = str(folder / "checkpoint.safetensors")
    line = damaged(folder, tmp_path, capsys, "--checkpoint", checkpoint, "--backbone", str(other))
    assert f"was trained on backbone '{folder / 'model'}'; '{other}' has other weights" in line


def test_a_template_without_a_class_is_refused(folder, tmp_path, capsys):
    code = main([*arguments(folder, tmp_path), "--templates", '["a sketch"]'])
    assert code == 2
    assert "templates 'a sketch': must contain {class}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_manifest_of_other_classes_is_refused(folder, tmp_path, capsys):
    other = tmp_path / "other"
    card = json.loads((folder / "manifest" / CARD_FILE).read_text())
    assert card["classes"][0] == "cup"
    shutil.copytree(folder / "manifest", other)
    card["classes"][0] = "bowl"
    (other / CARD_FILE).write_text(json.dumps(card))
    code = main([*arguments(folder, tmp_path), "--manifest", str(other)])
    assert code == 2
    assert "was trained for classes cup, fish; the images have fish" in capsys.readouterr().err


def test_rows_that_lead_elsewhere_are_refused_unless_allowed(folder, tmp_path, capsys):
    whole = load_manifest(str(folder / "manifest"))
    elsewhere = shutil.copytree(whole.source, tmp_path / "elsewhere")
    rows = [
        row | {"uri": row["uri"].replace(whole.source, str(elsewhere))}
        for row in whole.table.to_pylist()
    ]
    write_manifest(str(tmp_path / "odd"), rows, name="odd", source=whole.source)
    flags = [*arguments(folder, tmp_path), "--manifest", str(tmp_path / "odd")]
    assert main(flags) == 2
    assert "lies elsewhere" in capsys.readouterr().err
    assert main([*flags, "--allow-uri", str(elsewhere)]) == 0
