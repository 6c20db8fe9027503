"""The main job on a running cluster with token authentication.

As a person submits it, with a working directory; and as a RayJob's submitter does: the entrypoint
of the search `smoke`, behind `ray job submit --` in bash, where the operator puts it, so that its
variable is filled in, with its space where the ConfigMap is mounted. The cluster has the shape that
it asks for: a head without CPUs and two workers; token, probes and working directory are its own.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import yaml

from adu import storage
from infra.cluster.rendering import TRACKING_URI, render_search
from tests.infra.manifests import SETTINGS, ray_job
from tests.pipeline.commands import ROOT
from tests.ray_cluster import RAY, RayCluster, ray_cluster
from tests.tiny import tiny_backbone, tiny_manifest

# Two jobs and a cluster: more than a minute.
pytestmark = pytest.mark.faults

SPACE = "/etc/adu-search/space.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, s3_environment) -> Iterator[RayCluster]:
    """A head that trains nothing and two workers of two CPUs, which reach the S3 server."""
    folder = tmp_path_factory.mktemp("ray")
    with ray_cluster(folder, s3_environment, [["--num-cpus", "2"]] * 2) as running:
        yield running


@pytest.fixture
def job():
    return ray_job(render_search(SETTINGS, "smoke"))


@pytest.fixture
def space(tmp_path):
    (settings, *_) = render_search(SETTINGS, "smoke")
    file = tmp_path / "space.yaml"
    file.write_text(settings["data"]["space.yaml"])
    return str(file)


def test_the_entrypoint_runs_and_resumes_as_it_stands(job, space, cluster, s3, tmp_path):
    environment = {**cluster.environment, "RUN_NAME": "smoke"}
    entrypoint = job["entrypoint"]
    # Other places than a pod's: the mounted file, the bucket, and a server that is not there.
    for theirs, ours in (
        (SPACE, space),
        (SETTINGS.storage.bucket, s3),
        (TRACKING_URI, f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        assert theirs in entrypoint
        entrypoint = entrypoint.replace(theirs, ours)

    def submit() -> str:
        command = f"ray job submit --address {cluster.address} -- {entrypoint} ;"
        done = subprocess.run(
            ["bash", "-ce", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    log = submit()
    assert "starting 2 executors" in log
    summary = json.loads(storage.read_bytes(f"{s3}/results/smoke/summary.json"))
    (study,) = summary["studies"]
    assert (study["complete"], study["n_trials"]) == (True, 2)
    # A retry, on a cluster that knows nothing: all is in the bucket, and nothing is run again.
    assert "starting" not in submit()


def test_health_is_told_without_a_token_and_nothing_else_is(job, cluster):
    def probe_of(container) -> str:
        paths = {
            container[probe]["httpGet"]["path"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        (path,) = paths
        return path

    spec = job["rayClusterSpec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    for url in (cluster.address + probe_of(head), cluster.agents[1] + probe_of(worker)):
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=30)
    assert refused.value.code == 401


def test_the_image_stands_where_the_entrypoint_expects(job):
    dockerfile = (ROOT / "infra" / "image" / "Dockerfile").read_text()
    assert "WORKDIR /app\nUSER" in dockerfile
    for folder in ("pipeline", "search_spaces"):
        assert f"COPY {folder} {folder}" in dockerfile


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
        "search": {"trials": 1, "tries": 0},
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
