"""The main job on real servers, as `make up` starts them, with a worker node that dies under it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import boto3
import psutil
import psycopg
import pytest
import yaml
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from adu.errors import UserError
from adu.storage import write_bytes
from infra.stack.lifecycle import secrets_of
from infra.stack.postgres import DATABASES, find_program
from infra.stack.secret_files import NAMES
from infra.stack.settings import MLFLOW_BUCKET, SEARCH_BUCKET
from pipeline.tracking.server import TrackingConfig, check
from tests.browser import browser, wait_for_text
from tests.infra.conftest import planted
from tests.infra.stacks import ROOT, environment, is_gone, processes, run
from tests.tiny import tiny_backbone, tiny_images

pytestmark = pytest.mark.stack

MANIFEST = f"s3://{SEARCH_BUCKET}/manifests/tiny"
BACKBONE = f"s3://{SEARCH_BUCKET}/models/tiny"
OUTPUT = f"s3://{SEARCH_BUCKET}/results/tiny"
JOB_TIMEOUT_S = 240
BIN = Path(sys.executable).parent


def client_environment(stack):
    """Of a shell with the virtual environment and the stack's file."""
    return environment(stack) | {"PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def clients(stack):
    """This process as one that has sourced the stack's file."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(stack).items():
            if name.startswith(("AWS_", "MLFLOW_", "PG")):
                patch.setenv(name, value)
        yield stack


@pytest.fixture(scope="module")
def search(clients, tmp_path_factory):
    """Log of a search that has lost a worker node on its way."""
    folder = tmp_path_factory.mktemp("search")
    upload(tiny_backbone(folder / "model"), BACKBONE)
    ingest(clients, tiny_images(folder / "images"))
    (folder / "job.yaml").write_text(yaml.safe_dump(configuration(folder / "images")))
    job = submit(clients, "--config", str(folder / "job.yaml"), "--output", OUTPUT)
    log = kill_a_worker_after(clients, job, "trial 0 complete")
    assert job.returncode == 0, log
    return log


def configuration(images):
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": BACKBONE},
            # The images stay where they are, on a disk that all nodes of this machine share.
            "data": {
                "manifest": MANIFEST,
                "shots": 2,
                "val_shots": 1,
                "allow_uri": [str(images)],
            },
        },
        "forget": [["sketch"], ["photo"]],
        "train": {"epochs": 2, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 2, "tries": 0},
        "final": {"seeds": [0]},
    }


def upload(folder, url):
    for file in folder.iterdir():
        write_bytes(f"{url}/{file.name}", file.read_bytes())


def ingest(stack, images):
    arguments = ["--source", str(images), "--out", MANIFEST, "--name", "tiny"]
    subprocess.run(
        ["python", "pipeline/ingest.py", *arguments],
        cwd=ROOT,
        env=client_environment(stack) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=120,
    )


def submit(stack, *arguments):
    """Submits the search with the command that `make up` prints."""
    shell = client_environment(stack)
    return subprocess.Popen(
        ["ray", "job", "submit", "--working-dir", ".", "--", "python", "pipeline/search.py"]
        + ["--tracking-uri", shell["MLFLOW_TRACKING_URI"]]
        + ["--search.storage", shell["OPTUNA_STORAGE"], *arguments],
        cwd=ROOT,
        env=shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_a_worker_after(stack, job, line_part):
    """Kills a worker node once the job has said something; gives all that it says to its end."""
    timer = threading.Timer(JOB_TIMEOUT_S, job.kill)
    timer.start()
    lines = []
    for line in job.stdout:
        lines.append(line)
        if line_part in line:
            line_part = "\0"
            for pid in processes(stack)["ray-worker-2"].session():
                os.kill(pid, signal.SIGKILL)
    job.wait()
    timer.cancel()
    return "".join(lines)


def test_starting_it_twice_changes_nothing(stack):
    before = processes(stack)
    again = run("up", stack)
    assert again.returncode == 0, again.stderr
    assert "starting" not in again.stdout and processes(stack) == before
    for word in ("s3", "postgres", "mlflow", "ray-head", "ray-worker-1", "1 CPU", "buckets adu"):
        assert word in again.stdout
    other = run("up", stack, "--workers=3")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "the stack that runs there has other ports or sizes" in other.stderr


def test_the_search_ends_whole_without_one_of_its_nodes(search, stack):
    summary = f"{OUTPUT}/summary.json".removeprefix(f"s3://{SEARCH_BUCKET}/")
    studies = json.loads(s3_object(stack, SEARCH_BUCKET, summary))["studies"]
    assert [(study["complete"], study["n_trials"]) for study in studies] == [(True, 2)] * 2
    assert "ADU, searched" in search
    seen = run("status", stack)
    assert seen.returncode == 1
    assert re.search(r"ray-worker-2 .* down .* not running", seen.stdout)
    assert re.search(r"ray-worker-1 .* ok .* 1 CPU", seen.stdout)


def test_everything_is_where_it_belongs(search, stack):
    shell = environment(stack)
    client = MlflowClient(shell["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    stages = [each.data.tags["stage"] for each in runs if each.data.tags["level"] != "seed"]
    assert (stages.count("study"), stages.count("trial"), stages.count("best")) == (2, 4, 2)
    assert {found.info.status for found in runs} <= {"FINISHED", "KILLED"}
    assert len(client.search_registered_models()) == 2

    keys = s3_keys(stack, MLFLOW_BUCKET)
    for final in [
        each for each in runs if each.data.tags["stage"] == "best" and "seed" in each.data.params
    ]:
        assert final.info.artifact_uri.startswith("mlflow-artifacts:/")
        path = final.info.artifact_uri.removeprefix("mlflow-artifacts:/")
        assert f"{path}/checkpoint.safetensors" in keys
    searched = s3_keys(stack, SEARCH_BUCKET)
    assert [key for key in searched if key.endswith(".parquet")]
    # Optuna's studies are in the database alone.
    assert not [key for key in searched if key.endswith("optuna.journal")]

    with psycopg.connect(postgres_url(shell)) as database:
        rows = database.execute("SELECT state, count(*) FROM trials GROUP BY state").fetchall()
    assert sum(count for state, count in rows if state in ("COMPLETE", "PRUNED")) == 4


def postgres_url(shell):
    return shell["OPTUNA_STORAGE"].replace("postgresql+psycopg", "postgresql")


def s3_client(stack, user):
    shell = environment(stack)
    return boto3.client(
        "s3",
        endpoint_url=shell["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=user,
        aws_secret_access_key=secrets_of(stack).read(f"s3-{user}"),
    )


def s3_keys(stack, bucket):
    pages = s3_client(stack, "admin").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def s3_object(stack, bucket, key):
    return s3_client(stack, "admin").get_object(Bucket=bucket, Key=key)["Body"].read()


def test_a_browser_shows_the_runs(search, stack, tmp_path):
    shell = environment(stack)
    client = MlflowClient(shell["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("tiny").experiment_id
    with browser(tmp_path) as page:
        # The UI asks for a name and a password; without them there is nothing to see.
        log_in(page, shell)
        page.get(f"{shell['MLFLOW_TRACKING_URI']}/#/experiments/{experiment}/runs")
        wait_for_text(page, "forget sketch", "forget photo")
        page.get(f"{shell['MLFLOW_TRACKING_URI']}/#/models")
        wait_for_text(page, "tiny-without-sketch", "tiny-without-photo")


def log_in(page, shell):
    """Sends name and password with every request, as a browser does once they were typed."""
    login = f"{shell['MLFLOW_TRACKING_USERNAME']}:{shell['MLFLOW_TRACKING_PASSWORD']}"
    header = f"Basic {base64.b64encode(login.encode()).decode()}"
    page.execute_cdp_cmd("Network.enable", {})
    page.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": header}})


def test_users_may_do_what_they_need_and_no_more(search, stack, monkeypatch):
    shell = environment(stack)
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_client(stack, "search").list_objects_v2(Bucket=MLFLOW_BUCKET)
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_client(stack, "mlflow").list_objects_v2(Bucket=SEARCH_BUCKET)
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(postgres_url(shell).replace("/studies", "/mlflow"))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_url(shell), password="wrong")
    for url in (
        f"{shell['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1",
        f"{shell['RAY_API_SERVER_ADDRESS']}/api/jobs/",
    ):
        with pytest.raises(HTTPError) as error:
            urlopen(url, timeout=10)
        assert error.value.code in (401, 403)
    # A search says so before it starts.
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(UserError, match="does not let user 'search' in"):
        check(TrackingConfig(uri=shell["MLFLOW_TRACKING_URI"]), "tiny")


def test_the_account_of_the_searches_is_made_as_on_kubernetes(stack):
    """The script that runs in MLflow's pod: twice, since a walk-through is walked again."""
    shell = environment(stack)
    script = ROOT / "infra" / "cluster" / "scripts" / "mlflow_account.py"
    values = {
        "URL": shell["MLFLOW_TRACKING_URI"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets_of(stack).read("mlflow-admin"),
        "ADU_SEARCH_USERNAME": "other",
        "ADU_SEARCH_PASSWORD": planted("mlflow-search"),
    }
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-"],
            stdin=script.open(),
            env={**os.environ, **values},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "MLflow knows user other\n"), done.stderr


def test_no_secret_is_anywhere_but_in_its_file(search, stack, tmp_path):
    values = [planted(name) for name in NAMES]
    found = holding(search.encode(), values, "the job's log")
    for name in ("logs", "ray", "env.sh", "state.json"):
        found += holding_files(stack / name, values)
    found += holding(database_dumps(stack, tmp_path), values, "PostgreSQL")
    for bucket in (SEARCH_BUCKET, MLFLOW_BUCKET):
        for key in s3_keys(stack, bucket):
            found += holding(s3_object(stack, bucket, key), values, f"s3://{bucket}/{key}")
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        found += holding(line.encode(), values, f"process {process.pid}")
    assert not found
    # The search that this would find.
    assert holding_files(stack / "secrets", values)


def holding(data, values, where):
    return [where for value in values if value.encode() in data]


def holding_files(place, values):
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    return [where for file in files for where in holding(file.read_bytes(), values, str(file))]


def database_dumps(stack, folder):
    """Both databases as text; what MLflow has of runs, parameters, tags and users is in there."""
    shell = environment(stack)
    dumps = b""
    for role, database in DATABASES.items():
        password = secrets_of(stack).read(f"postgres-{role}")
        url = urlsplit(shell["OPTUNA_STORAGE"])
        dumps += subprocess.run(
            [find_program("pg_dump"), "-h", "127.0.0.1", "-p", str(url.port), "-U", role, database],
            env={**os.environ, "PGPASSWORD": password},
            capture_output=True,
            check=True,
        ).stdout
    assert b"forget sketch" in dumps
    return dumps


def test_it_ends_with_all_its_processes(stack):
    servers = processes(stack)
    started = {pid for server in servers.values() for pid in server.session()}
    assert len(started) > len(servers)
    done = run("down", stack)
    assert done.returncode == 0
    assert done.stdout.startswith("stopped s3, postgres, ")
    assert not [server for server in servers.values() if server.session()]
    assert all(is_gone(pid) for pid in started)
    lines = [" ".join(found.info["cmdline"] or ()) for found in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(stack) in line]
    assert run("down", stack).stdout == "nothing runs\n"
