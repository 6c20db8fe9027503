"""A server that cannot be used is told in one line, within seconds, and without its password."""

from __future__ import annotations

import logging
import time

import pytest

from adu.errors import UserError
from pipeline.tracking import server as server_module
from pipeline.tracking.server import (
    Server,
    TrackingConfig,
    artifacts_of,
    check,
    server_of,
    within,
    without_secrets,
)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://127.0.0.1:9", "no MLflow server answers there"),
        ("http://no.such.host.invalid", "no MLflow server answers there"),
        ("http://somebody:hunter2@127.0.0.1:9", "no MLflow server answers there"),
        ("postgresql://somebody:hunter2@127.0.0.1:9/mlflow", ""),
        ("mysql://somebody:hunter2@127.0.0.1:9/mlflow", ""),
        ("sqlite:////no/such/folder/mlflow.db", "there is no folder /no/such/folder"),
        ("databricks", ""),
        ("unheard-of://host", ""),
    ],
)
def test_a_server_that_cannot_be_used_is_one_clear_line(uri, says, monkeypatch):
    monkeypatch.setattr(server_module, "CHECK_TIMEOUT_S", 3.0)
    # A database's client goes on for minutes, and would say so in the midst of other tests.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    began_at = time.monotonic()
    with pytest.raises(UserError) as refused:
        check(TrackingConfig(uri=uri), "tiny")
    line = str(refused.value)
    assert line.startswith("tracking.uri ") and says in line and "\n" not in line
    assert "hunter2" not in line
    assert time.monotonic() - began_at < server_module.CHECK_TIMEOUT_S + 7


def test_a_file_that_is_no_database_is_told(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("something else, and long enough")
    with pytest.raises(UserError, match="mlflow.db: is no SQLite database"):
        check(TrackingConfig(uri=f"sqlite:///{file}"), "tiny")


def test_a_dead_registry_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(server_module, "CHECK_TIMEOUT_S", 2.0)
    config = TrackingConfig(registry_uri="http://a:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match="tracking.registry_uri http://a:") as refused:
        check(config, "tiny")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("variable", list(server_module.FORBIDDEN))
def test_a_variable_that_would_be_in_the_way_is_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=f"{variable}: must be unset"):
        check(TrackingConfig(), "tiny")


def test_mlflows_variables_mean_what_its_documentation_says(monkeypatch, tmp_path):
    own = Server(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert server_of(TrackingConfig(), tmp_path / "out") == own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://models:5000")
    assert server_of(TrackingConfig(), tmp_path) == Server("http://host:5000", "http://models:5000")
    named = TrackingConfig(uri="http://other", registry_uri="http://third")
    assert server_of(named, tmp_path) == Server("http://other", "http://third")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://adu:hunter2@host/db", "postgresql://adu:***@host/db"),
        ("postgresql://adu:hunt@r2/x@host/db", "postgresql://adu:***@host/db"),
        ("https://hunter2@host/db", "https://***@host/db"),
        (
            "postgresql://host/db?user=a&password=hunter2",
            "postgresql://host/db?user=a&password=***",
        ),
        ("cannot reach http://a:hunter2@host: no", "cannot reach http://a:***@host: no"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_passwords_are_hidden(text, shown):
    assert without_secrets(text) == shown


def test_what_opens_the_ui(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Server("http://host:5000").ui_command() == "open http://host:5000"
    assert server_of(TrackingConfig(), tmp_path / "results" / "run").ui_command() == "make ui"
    other = Server("sqlite:////elsewhere/mlflow.db")
    assert other.ui_command() == f"mlflow ui --backend-store-uri {other.uri}"


def test_artifacts_lie_beside_a_database_and_in_no_other_folder(tmp_path):
    # A submitted job stands in a folder that Ray removes, where MLflow would make `mlruns`.
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    assert artifacts_of(uri, "tiny") == (tmp_path / "artifacts" / "tiny").as_uri()
    assert "/artifacts/.." not in artifacts_of(uri, "../../victim")
    assert artifacts_of("http://host", "tiny") is None


def test_nobody_waits_longer_than_that():
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(5))
    with pytest.raises(ValueError, match="boom"):
        within(5, lambda: int("boom"))
    assert within(5, lambda: 3) == 3
