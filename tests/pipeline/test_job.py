"""The main job on a running cluster with token authentication, as `ray job submit` runs it."""

from __future__ import annotations

import json
import subprocess

import yaml

from tests.pipeline.commands import ROOT
from tests.ray_cluster import RAY, RayCluster
from tests.tiny import tiny_backbone, tiny_manifest


def submit(cluster: RayCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RAY), "job", "submit", "--address", cluster.address, "--working-dir", "."]
        + ["--", "python", "pipeline/search.py", *arguments],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_search_as_a_job(cluster, tmp_path):
    values = {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(tiny_backbone(tmp_path / "model"))},
            "data": {"manifest": str(tiny_manifest(tmp_path)), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 1, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 1},
        "resources": {"executors": 1},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(values))

    output = tmp_path / "results" / "job"
    done = submit(cluster, "--config", str(file), "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    (study,) = json.loads((output / "summary.json").read_text())["studies"]
    assert (study["complete"], study["n_trials"]) == (True, 1)
    # The job's log is the search's own: its lines and its table.
    assert "forget sketch: trial 0 complete" in done.stdout
    assert "ADU, searched" in done.stdout
