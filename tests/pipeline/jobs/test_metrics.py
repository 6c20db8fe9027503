"""A search seen from outside: what dashboard and alerts ask for is what Prometheus gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest
import ray
import yaml

from infra.stack.ports import free_ports
from pipeline.jobs import metrics
from pipeline.jobs.metrics import METRICS, SearchMetrics
from pipeline.studies.records import TrialRecord
from tests.pipeline.commands import ROOT
from tests.pipeline.records import scores

MONITORING = ROOT / "infra" / "monitoring"
COUNTERS = ("adu_trials", "adu_epochs", "adu_storage_waits")
NAME = re.compile(r"\b(?:ray_)?adu_\w+")


def served() -> set[str]:
    """The names as Prometheus has them: Ray puts its own before them, and after a counter's."""
    return {f"ray_{name}_total" if name in COUNTERS else f"ray_{name}" for name in METRICS}


def expressions():
    board = json.loads((MONITORING / "dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    return found, [rule["expr"] for rule in rules]


def test_dashboard_and_alerts_name_what_is_served():
    panels, alerts = expressions()
    labels = {"adu_search"}
    named = {name for text in (*panels, *alerts) for name in NAME.findall(text)} - labels
    assert named == served(), "each figure is on the dashboard, and nothing else is"
    assert all("_bucket" not in text for text in panels)


def test_alerts_are_rules_of_prometheus():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (prometheus, in Debian)")
    file = MONITORING / "alerts.yaml"
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder, target):
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    (port,) = free_ports(1)
    scrape = {"job_name": "ray", "static_configs": [{"targets": [target]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [scrape],
        "rule_files": [str(MONITORING / "alerts.yaml")],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/db",
    ]
    server = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        server.kill()
        server.wait()


def query(api, expression):
    url = f"{api}/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]["result"]


class Run:
    study, stage, key = "sketch", "trial", "sketch/0"


@pytest.mark.faults
def test_a_real_prometheus_answers_every_expression(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "LOOK_S", 0.2)
    (port,) = free_ports(1)
    ray.init(num_cpus=1, _metrics_export_port=port, log_to_driver=False)
    try:
        told = SearchMetrics("pacs", lambda: 3, lambda: 1.5)
        with told, prometheus(tmp_path, f"127.0.0.1:{port}") as api:
            told.run_started(Run)
            told.run_epoch(Run, None, True)
            told.waited()
            record = TrialRecord(0, {}, 1, "complete", scores(0.4, 0.4), 1.0, 1.0)
            told.run_ended(Run, record)
            wanted = {
                "ray_adu_best_h": 0.4,
                "ray_adu_epochs_total": 1,
                'ray_adu_trials_total{study="sketch",state="complete"}': 1,
                'ray_adu_executors{adu_search="pacs",state="idle"}': 3,
                "ray_adu_mlflow_lag_seconds": 1.5,
                "ray_adu_storage_waits_total": 1,
            }
            seen = {}
            deadline = time.monotonic() + 120
            while seen != pytest.approx(wanted) and time.monotonic() < deadline:
                time.sleep(1)
                try:
                    answers = {text: query(api, text) for text in wanted}
                except OSError:
                    continue
                seen = {t: float(a[0]["value"][1]) for t, a in answers.items() if a}
            assert seen == pytest.approx(wanted)
            panels, alerts = expressions()
            for text in panels:
                assert isinstance(query(api, text.replace("$search", ".*")), list), text
            for text in alerts:
                assert isinstance(query(api, text), list), text
    finally:
        ray.shutdown()
