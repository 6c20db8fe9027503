"""`pipeline/train.py`, run as a user runs it: one configuration, two workers, several seeds."""

import json

import pytest
from mlflow import MlflowClient

from pipeline.evaluate import main as evaluate
from pipeline.train import main
from tests.pipeline import commands
from tests.tiny import tiny_backbone, tiny_manifest


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    backbone, manifest = tiny_backbone(folder / "model"), tiny_manifest(folder)
    return [
        *("--backbone", str(backbone), "--manifest", str(manifest)),
        *("--shots", "2", "--context.data.val-shots", "1", "--epochs", "2"),
    ]


@pytest.mark.slow
def test_it_trains_tests_logs_and_keeps_checkpoints(flags, tmp_path, capsys):
    output = tmp_path / "out"
    code, out, err = commands.run(
        "train.py",
        [
            *(*flags, "--forget", "sketch:cup,photo", "--method", "maple", "--method.depth", "2"),
            *("--workers", "2", "--seeds", "[0,1]", "--output", str(output)),
        ],
    )
    assert code == 0, err
    assert out.count("epoch 2/2") == 2
    assert "±" in out and "zero-shot" in out
    figures = json.loads((output / "metrics.json").read_text())
    assert [(f["stage"], f["seed"]) for f in figures] == [
        ("maple", 0),
        ("maple", 1),
        ("zero_shot", 0),
    ]
    client = MlflowClient(f"sqlite:///{output.parent / 'mlflow.db'}")
    seeds = "tags.stage = 'maple' AND tags.level = 'seed'"
    runs = client.search_runs(["1"], filter_string=seeds)
    assert {run.data.metrics["test/h"] for run in runs} == {f["test"]["h"] for f in figures[:2]}
    assert {run.info.status for run in client.search_runs(["1"])} == {"FINISHED"}
    checkpoint = str(output / "seed-1.safetensors")
    uri = f"sqlite:///{output.parent / 'mlflow.db'}"
    assert evaluate(["--checkpoint", checkpoint, *flags[2:4], "--tracking-uri", uri]) == 0
    assert f"{100 * figures[1]['test']['h']:.1f}" in capsys.readouterr().out
    (run, *_) = client.search_runs(["1"], "tags.stage = 'evaluate' AND tags.method = 'maple'")
    assert run.data.metrics["test/h"] == figures[1]["test"]["h"]
    assert {"forget/entropy", "template/class/for", "domain_accuracy"} <= run.data.metrics.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--forget", "oil"],
            "forget domain 'oil': unknown (known domains: clipart, photo, sketch)",
        ),
        (["--forget", "sketch", "--method", "vpt"], "method.name = 'vpt': unknown method (known: "),
        (
            ["--forget", "sketch:car"],
            "forget 'sketch:car': class 'car' is unknown (known classes: cup, fish, star)",
        ),
        (["--forget", "sketch", "--shots", "99"], "fewer than 99 shots"),
        ([], "field 'forget' is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, tmp_path, capsys, arguments, message):
    output = tmp_path / "out"
    assert main([*flags, *arguments, "--output", str(output)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_an_output_folder_that_is_there_is_refused(flags, tmp_path, capsys):
    assert main([*flags, "--forget", "sketch", "--output", str(tmp_path)]) == 2
    assert f"output {tmp_path}: exists already" in capsys.readouterr().err
