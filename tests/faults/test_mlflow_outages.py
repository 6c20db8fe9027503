"""MLflow is away, slow, full or restarted: afterwards it holds what an undisturbed search gives."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from optuna.storages import InMemoryStorage

from pipeline.track import main as track
from pipeline.tracking import projection as projection_module
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.projection import Projection
from pipeline.tracking.server import Server
from pipeline.tracking.truth import AtWork, Truth
from tests.fault_proxy import fault_proxy
from tests.mlflow_server import MlflowServer, held, mlflow_server
from tests.pipeline import commands
from tests.pipeline.tracking import made_up
from tests.tiny import N_BLOCKS, tiny_backbone, tiny_manifest

TRIALS = 6
EPOCHS = 30
# An answer that is cut short or never comes is one to a request that was carried out.
KINDS = ("500", "slow_down", "too_many", "reset", "truncate")

PASSWORD = "hunter2-of-the-planted-user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outages")


@pytest.fixture(scope="module")
def server(folder):
    (folder / "server").mkdir()
    with mlflow_server(folder / "server") as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(projection_module, "LONGEST_PAUSE_S", 2.0)
    monkeypatch.setattr(projection_module, "SLOW_S", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def contents(url: str, truth: Truth) -> dict[str, object]:
    """What MLflow holds, apart from what names the search itself."""
    found = held(MlflowClient(url), truth.facts.data_set, truth.facts.id)
    own = ("search_id", "output", "adu.fingerprint")
    return {
        name: (status, parent, {k: v for k, v in tags.items() if k not in own}, *rest)
        for name, (status, parent, tags, *rest) in found.items()
    }


def search(url: str, folder: Path, meanwhile=lambda: None) -> tuple[Truth, list[str]]:
    """A search of which a trial ends now and then, and what was told of MLflow."""
    lines: list[str] = []
    facts = made_up.facts_of(folder, [("sketch",)], id=str(uuid.uuid4()))
    stored = InMemoryStorage()
    truth = Truth(facts, str(folder), stored, AtWork())
    projection = Projection(Mirror(Server(url), truth), lines.append, period_s=0.3)
    projection.start()
    trouble = threading.Thread(target=meanwhile)
    trouble.start()
    made_up.search_output(
        folder, trials=TRIALS, id=facts.id, storage=Slowly(stored), tags=facts.tags
    )
    trouble.join()
    assert projection.finish(240) == ""
    return truth, lines


class Slowly:
    """Optuna's storage, in which a trial takes a while to end."""

    def __init__(self, stored):
        self._stored = stored

    def __getattr__(self, name):
        if name == "set_trial_state_values":
            time.sleep(0.4)
        return getattr(self._stored, name)


@pytest.fixture(scope="module")
def calm(server, folder):
    truth = made_up.search_output(folder / "calm", trials=TRIALS, id=str(uuid.uuid4()))
    Mirror(Server(server.url), truth).sync()
    return contents(server.url, truth)


def test_a_server_that_breaks_a_tenth_of_all_requests(server, calm, tmp_path):
    with fault_proxy(server.url, rate=0.1, seed=3) as proxy:
        proxy.kinds = KINDS
        truth, _ = search(proxy.url, tmp_path)
        assert set(proxy.broken) == set(KINDS)
    assert contents(server.url, truth) == calm


def test_a_server_that_answers_once_a_second_is_behind_and_catches_up(server, calm, tmp_path):
    with fault_proxy(server.url) as proxy:
        proxy.delay_s = 1.0
        timer = threading.Timer(15, lambda: setattr(proxy, "delay_s", 0.0))
        timer.start()
        truth, lines = search(proxy.url, tmp_path)
        timer.join()
    assert "it answers slowly" in lines[0]
    assert contents(server.url, truth) == calm


def test_a_server_that_is_killed_and_started_again(server, calm, tmp_path):
    def restart() -> None:
        for _ in range(2):
            time.sleep(1.5)
            server.kill()
            time.sleep(3)
            server.start()

    truth, lines = search(server.url, tmp_path, restart)
    assert lines[0].startswith("MLflow is behind by ") and lines[-1] == "MLflow has caught up"
    assert contents(server.url, truth) == calm


def test_a_server_whose_disk_is_full_for_a_while(server, calm, tmp_path):
    def fill() -> None:
        time.sleep(1.5)
        server.set_disk_full(True)
        time.sleep(6)
        server.set_disk_full(False)

    truth, lines = search(server.url, tmp_path, fill)
    assert lines[0].startswith("MLflow is behind by ") and lines[-1] == "MLflow has caught up"
    assert contents(server.url, truth) == calm


def test_a_server_that_stays_away_is_made_up_for_by_track(server, calm, tmp_path, capsys):
    facts_id = str(uuid.uuid4())
    truth = made_up.search_output(tmp_path, trials=TRIALS, id=facts_id)
    with fault_proxy(server.url, rate=1.0) as proxy:
        proxy.kinds = ("500",)
        projection = Projection(Mirror(Server(proxy.url), truth), period_s=0.3)
        projection.start()
        assert projection.finish(3).startswith("MLflow is behind by ")
    assert track(["--output", str(tmp_path), "--tracking-uri", server.url]) == 0
    assert "runs are in http://127.0.0.1" in capsys.readouterr().out
    assert contents(server.url, truth) == calm


def config(folder: Path) -> str:
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    values = {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(folder / "model")},
            "data": {"manifest": str(folder / "manifest"), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": EPOCHS, "batch_size": 8},
        "method": {"name": "adu", "instapg_layer": N_BLOCKS - 2},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 4, "sampler": "random", "scheduler": "none", "race": 1},
        "final": {"seeds": [0]},
        "resources": {"executors": 1},
        "tracking": {"register_models": False},
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def test_a_search_goes_on_and_its_servers_password_stays_home(server: MlflowServer, tmp_path):
    """A real search, its server killed in the middle; the URI's password is nowhere to be seen."""
    output, file = tmp_path / "out", config(tmp_path)
    uri = server.url.replace("//", f"//somebody:{PASSWORD}@")
    arguments = ["--config", file, "--output", str(output), "--tracking-uri", uri]
    process = commands.start("search.py", arguments)
    deadline = time.monotonic() + 200
    log = output / "search.log"
    while not log.exists() or "sketch/0: epoch 1" not in log.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    server.kill()
    time.sleep(5)
    server.start()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert f"open {server.url.replace('//', '//somebody:***@')}" in out
    client = MlflowClient(server.url)
    search_id = yaml.safe_load((output / "search.json").read_text())["id"]
    found = held(client, "tiny", search_id)
    below = [name for name in found if name.startswith("sketch: trial")]
    # Further seeds of a trial's configuration are below it, each with what it came to.
    trials = [found[name] for name in below if ", seed " not in name]
    assert len(trials) == 4 and len(below) > 4
    for status, _, _, _, curves, _, _ in trials:
        assert status == "FINISHED" and len(curves["val/h"]) == EPOCHS
    assert {values[0] for values in found.values()} == {"FINISHED"}
    told = [out, err, repr(found)]
    files = [file for file in output.rglob("*") if file.is_file()]
    assert len(files) > 10
    for place in (*files, *(file for file in (tmp_path.parent).rglob("server.log"))):
        told.append(place.read_bytes().decode(errors="replace"))
    assert not [text[:200] for text in told if PASSWORD in text]
