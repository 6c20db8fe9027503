"""A search that proves what it has found is killed among the attacks, and does nothing twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import unquote

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pipeline import report
from pipeline.studies.records import read_study_record
from tests.pipeline import commands
from tests.tiny import tiny_backbone, tiny_manifest

START_TIMEOUT_S = 600.0
ENDS = {"untouched", "knows_nothing"}
SHORT = {
    "relearning": {"shots": [1], "at_steps": [0, 1]},
    "benign": {"at_steps": [0, 1]},
    "soft_prompt": {"shots": [1], "steps": 1},
}


def config(folder: Path) -> dict:
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(folder / "model")},
            "data": {"manifest": str(folder / "manifest"), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 2, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 2, "scheduler": "none", "race": 2, "objective": "mem-distance"},
        "final": {"seeds": [0]},
        "resources": {"executors": 1},
        "output": str(folder / "results" / "out"),
    }


def start(folder: Path, *arguments: str) -> list[str]:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(config(folder)))
    return ["--config", str(file), *arguments]


def kill(process) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for member in psutil.wait_procs(family, timeout=10)[1]:
        member.kill()
    process.communicate()


def contents(study: Path, pattern: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in study.glob(pattern)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof")
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    return folder


@pytest.mark.timeout(2400)
def test_a_search_that_has_ended_is_proved_and_killed_and_goes_on(folder):
    output = folder / "results" / "out"
    study = output / "studies" / "sketch"
    code, out, err = commands.run("search.py", start(folder))
    assert code == 0, out + err
    check_searched(output)
    trained = contents(study, "finals/*.npz")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["studies"][0]["proof"] is None

    asked = ["--prove.quick", "--prove.battery", json.dumps(SHORT), "--resume"]
    process = commands.start("search.py", start(folder, *asked))
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(list(study.glob("outcomes/*/*.json"))) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    kill(process)
    assert not (study / "evidence.html").exists()
    before = {**contents(study, "outcomes/*/*.json"), **contents(study, "references/*/*.npz")}
    # The final seed and the search's own best one, which may be the same, and a reference of each.
    again = read_study_record(str(output / "studies" / "sketch.json")).finals["best_again"]
    n_seeds = len({0, *again.seeds})
    n_files = (len(ENDS) + 2 * n_seeds) * 13 + n_seeds
    assert 20 < len(before) < n_files

    code, out, err = commands.run("search.py", start(folder, *asked))
    assert code == 0, out + err
    assert "forget sketch: proving" in out
    after = {**contents(study, "outcomes/*/*.json"), **contents(study, "references/*/*.npz")}
    assert {file: after[file] for file in before} == before, "something was done twice"
    assert len(after) == n_files
    assert contents(study, "finals/*.npz") == trained

    figures = json.loads((study / "evidence.json").read_text())
    assert figures["standings"].keys() == {*ENDS, "adu", "never_shown"}
    assert figures["verdict"] in (study / "evidence.html").read_text()
    words = f"sketch, attacked: {figures['verdict']}"
    assert words in " ".join(out.split())
    (known,) = json.loads((output / "summary.json").read_text())["studies"]
    assert known["proof"]["verdict"] == figures["verdict"]
    assert known["proof"]["distance"] == figures["standings"]["adu"]["distance"]["mean"]
    check_shown(output, figures)

    code, out, err = commands.run("search.py", start(folder, *asked))
    assert code == 0, out + err
    assert "proving" not in out and words in " ".join(out.split())


def check_searched(output: Path) -> None:
    """Trials were judged by their distance."""
    stored = JournalStorage(JournalFileBackend(str(output / "optuna.journal")))
    trials = optuna.load_study(study_name="sketch", storage=stored).get_trials()
    for trial in trials:
        val = json.loads(trial.user_attrs["record"])["val"]
        assert 0 <= val["distance"] <= 1
        assert trial.value == pytest.approx(val["mem"] - val["distance"])
    (study,) = json.loads((output / "summary.json").read_text())["studies"]
    assert study["best"]["val"].keys() == {"mem", "for", "h", "distance"}


def check_shown(output: Path, figures: dict) -> None:
    """The report links the page, and MLflow has it."""
    assert report.main(["--output", str(output)]) == 0
    page = (output / "report.html").read_text()
    links = [unquote(part.split('"')[0]) for part in page.split('href="')[1:]]
    assert "studies/sketch/evidence.html" in links
    client = MlflowClient(f"sqlite:///{output.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (run,) = client.search_runs([experiment], "tags.level = 'study'")
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"pictures", "evidence.html", "evidence.json"}
    assert run.data.tags["verdict"] == figures["verdict"]
    assert run.data.metrics["best/distance"] == figures["standings"]["adu"]["distance"]["mean"]
