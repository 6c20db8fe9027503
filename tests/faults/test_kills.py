"""A search is killed again and again, and ends with the trials of one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from adu import storage
from pipeline.results.output import fetch_journal
from tests.faults.stub_job import EXECUTOR_TITLES, title
from tests.pipeline import commands
from tests.tiny import N_BLOCKS, tiny_backbone, tiny_manifest

N_TRIALS = 6
EPOCHS = 60
# A folder and what lies in it outlive a kill; with a bucket, the local disk goes as well.
KILLS = {"folder": 12, "bucket": 6}
# A start takes about half a minute, a trial some seconds.
WORKING_S = 4.0
START_TIMEOUT_S = 400.0


def config(folder: Path, output: str) -> dict:
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(folder / "model")},
            "data": {"manifest": str(folder / "manifest"), "shots": 4, "val_shots": 1},
        },
        "forget": [["sketch"], ["photo"]],
        "train": {"epochs": EPOCHS, "batch_size": 2},
        "space": {
            "method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30},
            "method.instapg": {"choices": [True, False], "default": True},
            "method.instapg_layer": {
                "low": 1,
                "high": N_BLOCKS - 2,
                "default": 2,
                "when": {"method.instapg": True},
            },
            "train.lr": {"low": 0.001, "high": 0.1, "log": True, "default": 0.0025},
        },
        # What a study knows at each proposal is then always the same.
        "search": {"trials": N_TRIALS, "startup_trials": 2, "scheduler": "none", "at_once": 1},
        "final": {"seeds": [0]},
        "resources": {"executors": 2},
        "output": output,
        "tracking": {"uri": None if storage.is_local(output) else database(folder)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    tiny_backbone(folder / "model")
    tiny_manifest(folder, per_cell=12)
    return folder


def database(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def search_config(folder: Path, name: str, output: str) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config(folder, output)))
    return str(file)


def trials(output: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    with tempfile.TemporaryDirectory() as folder:
        journal = fetch_journal(output, Path(folder))
        studies = JournalStorage(JournalFileBackend(str(journal)))
        names = optuna.get_all_study_names(studies)
        return {
            name: optuna.load_study(study_name=name, storage=studies).get_trials() for name in names
        }


def found(output: str) -> dict:
    """All that must be the same, however often a search was killed."""
    summary = storage.read_bytes(storage.join(output, "summary.json"))
    studies = json.loads(summary)["studies"]
    return {
        "trials": {
            name: [
                (trial.number, trial.state.name, trial.params, trial.intermediate_values)
                for trial in study
            ]
            for name, study in trials(output).items()
        },
        "best": [study["best"] for study in studies],
        "baselines": [study["baselines"] for study in studies],
    }


def kill_driver(pid: int) -> None:
    """The command alone: what is left of its cluster ends by itself, or is swept away later."""
    family = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_tree(pid: int) -> None:
    """What the death of a whole node does."""
    if not psutil.pid_exists(pid):
        return
    family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=20)


def kill_worker(pid: int, draw: random.Random) -> None:
    workers = [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if title(process).startswith(EXECUTOR_TITLES)
    ]
    if workers:
        os.kill(draw.choice(workers).pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def calm(folder) -> dict:
    """What a search finds that is left alone."""
    output = str(folder / "calm" / "out")
    process = commands.start("search.py", ["--config", search_config(folder, "calm", output)])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return found(output)


@pytest.fixture(params=["folder", "bucket"])
def place(request, folder) -> str:
    if request.param == "folder":
        return str(folder / "killed" / "out")
    return storage.join(request.getfixturevalue("s3"), "killed", "out")


@pytest.mark.timeout(3000)
def test_a_search_that_is_killed_again_and_again_finds_the_same(folder, place, calm, request):
    kind = "folder" if storage.is_local(place) else "bucket"
    draw = random.Random(0)
    arguments = ["--config", search_config(folder, kind, place), "--resume-or-start"]
    kills = 0
    while kills < KILLS[kind]:
        disk = Path(tempfile.mkdtemp(prefix="kill-"))
        before = savepoints(place)
        process = commands.start("search.py", arguments, TMPDIR=str(disk))
        request.addfinalizer(lambda pid=process.pid: kill_tree(pid))
        deadline = time.monotonic() + START_TIMEOUT_S
        # Sometimes within the start, mostly at work.
        early = draw.random() < 0.15
        while not early and process.poll() is None and savepoints(place) == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(draw.uniform(0, WORKING_S))
        if process.poll() is not None:
            break
        if draw.random() < 0.25:
            kill_worker(process.pid, draw)
            kills += 1
            time.sleep(draw.uniform(0, 2 * WORKING_S))
        if process.poll() is None:
            draw.choice((kill_tree, kill_driver))(process.pid)
            kills += 1
        process.communicate(timeout=60)
        shutil.rmtree(disk, ignore_errors=True)
    assert kills >= KILLS[kind], f"the search ended after {kills} kills"

    process = commands.start("search.py", arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert found(place) == calm
    uri = database(folder if kind == "bucket" else Path(place).parent)
    check_mlflow(uri)
    assert savepoints(place) == {}


def savepoints(output: str) -> dict[str, str]:
    """The savepoints of a search, and when each was written."""
    fs, path = storage.filesystem_for(storage.join(output, "unfinished"))
    files = fs.find(path, detail=True)
    when = {name: facts.get("LastModified", facts.get("mtime")) for name, facts in files.items()}
    # A bucket may have an empty object in the place of a folder, which has no time.
    return {name: str(written) for name, written in when.items() if written is not None}


def check_mlflow(uri: str) -> None:
    """One parent a study, one run a trial and a configuration, each curve once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    stages: dict[str, int] = {}
    for run in (run for run in runs if run.data.tags["level"] != "seed"):
        stage = run.data.tags["stage"]
        stages[stage] = stages.get(stage, 0) + 1
        assert run.info.status == "FINISHED", (stage, run.info.status)
        if stage == "trial":
            history = client.get_metric_history(run.info.run_id, "val/h")
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))
    assert stages == {
        "study": 2,
        "trial": 2 * N_TRIALS,
        "zero_shot": 2,
        "baseline": 2,
        "paper_defaults": 2,
        "best": 2,
        "best_again": 2,
    }
