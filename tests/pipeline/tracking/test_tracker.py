"""Runs in MLflow: on a SQLite file and on a real server, once or again after a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from adu.data.manifest import load_manifest
from adu.errors import UserError
from adu.evaluation.evaluate import TestResult
from adu.evaluation.metrics import Scores
from adu.methods.adu import AduConfig
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from infra.stack.ports import free_ports
from pipeline.executors.outcome_file import TestOutcome
from pipeline.studies.records import TrialRecord
from pipeline.tracking.recorder import Background, TrackedStudy
from pipeline.tracking.tracker import Tracker, default_uri, ui_command
from tests.tiny import tiny_manifest

SCORES = Scores(0.9, 0.8, 0.847, {"photo": 0.9, "sketch": 0.2}, {"photo": 10, "sketch": 10})
TAGS = {"forget": "sketch", "search": "s-1", "trial_number": "0"}
PARAMS = {"method.gamma": 30.0, "train.lr": 0.0025}
START_TIMEOUT_S = 90


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where a database is given, MLflow puts artifacts below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_manifest(str(tiny_manifest(tmp_path_factory.mktemp("data"), per_cell=4)))


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory):
    """A database that several tests share: MLflow takes seconds to create one."""
    return default_uri(tmp_path_factory.mktemp("results") / "out")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of a real MLflow server."""
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        + ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
        + ["--artifacts-destination", str(folder / "artifacts")],
        cwd=folder,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_healthy(url, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_healthy(url, process):
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def report(epoch, h=0.5):
    scores = Scores(0.6, 0.4, h, {"photo": 0.6, "sketch": 0.6}, {"photo": 10, "sketch": 10})
    losses = {"total": 1.0 / epoch, "memorize": 0.1}
    return EpochReport(epoch, 3, 0.01, losses, scores, 2.0, 0.5, 64.0)


def whole_search(tracker, manifest):
    """What a search writes for one study; returns the runs' ids."""
    study = tracker.start_study("s-1/sketch", "forget sketch", TAGS, {"epochs": 3}, manifest)
    trial = tracker.log_trial(study, "abc", PARAMS, TAGS)
    for epoch in (1, 2, 3):
        tracker.log_epoch(trial, report(epoch))
    tracker.end_trial(trial, "FINISHED", {"epochs_done": 3})
    features = np.zeros((2, 4), np.float32)
    counts, numbers = np.zeros((2, 1, 1), int), np.array([0, 1])
    result = TestResult(SCORES, counts, features, numbers, numbers, 1.0)
    outcome = TestOutcome(SCORES, result, 0.7, b"weights", began_s=1000.0, ended_s=1060.5)
    run = RunConfig(forget=("sketch",), method=AduConfig())
    final = tracker.log_final(study, "best", run, outcome, manifest, TAGS)
    tracker.log_pictures(study, {"history.png": b"png"})
    tracker.end_study(study, "FINISHED", {"best/test_h": 0.847})
    return study, trial, final


def check(client, ids):
    study, trial, final = (client.get_run(run_id) for run_id in ids)
    assert study.data.metrics == {"best/test_h": 0.847}
    assert trial.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert trial.data.params == {"gamma": "30.0", "lr": "0.0025"}
    curve = client.get_metric_history(trial.info.run_id, "loss/total")
    assert [(point.step, point.value) for point in curve] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert final.data.metrics["test/for"] == 0.8
    assert final.data.metrics["test/domain_accuracy"] == 0.7
    assert final.data.metrics["test/accuracy/sketch"] == 0.2
    assert final.data.params["gamma"] == "30.0"
    # It is logged after it has ended, and shows when it ran all the same.
    assert (final.info.start_time, final.info.end_time) == (1_000_000, 1_060_500)
    splits = [run.inputs.dataset_inputs[0].tags[0].value for run in (study, final)]
    assert splits == ["train", "test"]
    assert all(run.data.tags["mlflow.user"] for run in (study, trial, final))
    names = {file.path for file in client.list_artifacts(final.info.run_id)}
    assert names == {"config.yaml", "checkpoint.safetensors"}
    assert {run.info.status for run in (study, trial, final)} == {"FINISHED"}


def test_the_embedded_default_is_a_file_beside_the_output(sqlite_uri, manifest, tmp_path_factory):
    output = tmp_path_factory.getbasetemp() / "results0" / "out"
    ids = whole_search(Tracker(None, output, "embedded"), manifest)
    client = MlflowClient(sqlite_uri)
    check(client, ids)
    # The text of a checkpoint comes back as it was.
    path = client.download_artifacts(ids[2], "checkpoint.safetensors")
    with Path(path).open("rb") as file:
        assert file.read() == b"weights"


def test_artifacts_lie_beside_a_database_that_was_named(manifest, tmp_path, monkeypatch):
    # A submitted job stands in a folder that Ray removes, where MLflow would make `mlruns`.
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    (tmp_path / "tracking").mkdir()
    uri = f"sqlite:///{tmp_path / 'tracking' / 'runs.db'}"
    ids = whole_search(Tracker(uri, tmp_path / "out", "named"), manifest)
    check(MlflowClient(uri), ids)
    assert list((tmp_path / "tracking" / "artifacts" / "named").rglob("checkpoint.safetensors"))
    assert not list((tmp_path / "job").iterdir())


def test_a_server_holds_the_same(server, manifest, tmp_path):
    Tracker.check(server)
    ids = whole_search(Tracker(server, tmp_path / "out", "served"), manifest)
    check(MlflowClient(server), ids)
    assert not (tmp_path / "mlflow.db").exists()


def test_after_a_restart_the_same_runs_go_on(sqlite_uri, manifest, tmp_path):
    first = whole_search(Tracker(sqlite_uri, tmp_path / "out", "restarted"), manifest)
    again = whole_search(Tracker(sqlite_uri, tmp_path / "out", "restarted"), manifest)
    assert first == again
    client = MlflowClient(sqlite_uri)
    experiment = client.get_experiment_by_name("restarted")
    assert len(client.search_runs([experiment.experiment_id])) == 3


def test_trials_of_two_studies_with_the_same_id_are_two_runs(sqlite_uri, tmp_path):
    tracker = Tracker(sqlite_uri, tmp_path / "out", "namesakes")
    studies = [
        tracker.start_study(f"s/{name}", f"forget {name}", {"forget": name}, {})
        for name in ("photo", "sketch")
    ]
    trials = [tracker.log_trial(study, "abc", {}, {}) for study in studies]
    assert len(set(studies)) == len(set(trials)) == 2


def test_what_a_kill_kept_from_mlflow_is_made_up_for_when_the_search_is_resumed(
    sqlite_uri, tmp_path
):
    tracker = Tracker(sqlite_uri, tmp_path / "out", "mended")
    study = tracker.start_study("s-2/sketch", "forget sketch", TAGS, {})
    whole = tracker.log_trial(study, "0", PARAMS, TAGS)
    for epoch in (1, 2, 3):
        tracker.log_epoch(whole, report(epoch))
    tracker.end_trial(whole, "FINISHED", {"epochs_done": 3})
    # Killed when Optuna knew of the end and MLflow did not; the third trial it never heard of.
    cut = tracker.log_trial(study, "1", PARAMS, TAGS)
    tracker.log_epoch(cut, report(1))
    client = MlflowClient(sqlite_uri)
    before = client.get_run(whole).info.end_time

    background = Background()
    tracked = TrackedStudy(lambda: tracker, background, lambda _: study, TAGS)
    scores = {epoch: {"mem": 0.6, "for": 0.4, "h": 0.5} for epoch in (1, 2, 3)}
    for number in (0, 1, 2):
        ended = TrialRecord(number, PARAMS, 3, "complete", SCORES, 3.0, 2.0)
        tracked.trial_restored(ended, scores)
    background.flush()
    background.close()

    experiment = client.get_experiment_by_name("mended").experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{study}'")
    assert sorted(run.data.tags["adu.trial_id"] for run in runs) == ["0", "1", "2"]
    for run in runs:
        assert (run.info.status, run.data.metrics["epochs_done"]) == ("FINISHED", 3)
        curve = client.get_metric_history(run.info.run_id, "val/h")
        assert [point.step for point in curve] == [1, 2, 3]
    assert client.get_run(whole).info.end_time == before


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_a_server_that_is_not_there_is_one_clear_line(url):
    with pytest.raises(UserError, match=f"^tracking.uri {url}: no MLflow server answers there$"):
        Tracker.check(url)


def test_what_opens_the_ui(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ui_command("http://host:5000") == "open http://host:5000"
    assert ui_command(default_uri(tmp_path / "results" / "run")) == "make ui"
    other = "sqlite:////elsewhere/mlflow.db"
    assert ui_command(other) == f"mlflow ui --backend-store-uri {other}"
