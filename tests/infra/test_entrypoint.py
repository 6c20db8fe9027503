"""What a RayJob's submitter runs, run as it stands in the rendered manifest.

The operator puts the entrypoint behind `ray job submit --` in the submitter's bash, which fills in
its variables. The cluster here has the shape that the overlay asks for: a head without CPUs and
two workers; its token, probes and working directory are those of the manifest.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request

import pytest

from adu import storage
from tests.infra.manifests import ray_job, render
from tests.pipeline.commands import ROOT

OVERLAY = "kuberay/overlays/cpu-smoke"


@pytest.fixture
def job():
    return ray_job(render(OVERLAY))


def submitter_environment(job, cluster, **values) -> dict[str, str]:
    """The variables that the manifest gives the submitter, with other values."""
    (container,) = job["submitterPodTemplate"]["spec"]["containers"]
    (settings,) = [
        o["data"]
        for o in render(OVERLAY)
        for source in container["envFrom"]
        if (o["kind"], o["metadata"]["name"]) == ("ConfigMap", source["configMapRef"]["name"])
    ]
    given = {*settings, *(variable["name"] for variable in container["env"])}
    assert values.keys() <= given, "only what the manifest sets"
    return {**cluster.environment, **settings, **values}


def test_the_entrypoint_runs_and_resumes_as_it_stands(job, cluster, s3, tmp_path):
    environment = submitter_environment(
        job,
        cluster,
        RESULTS=f"{s3}/results",
        RUN_NAME="adu-smoke",
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db",
    )

    def submit() -> str:
        command = f"ray job submit --address {cluster.address} -- {job['entrypoint'].strip()} ;"
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
    summary = json.loads(storage.read_bytes(f"{s3}/results/adu-smoke/summary.json"))
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
