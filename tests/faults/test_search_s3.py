"""A search whose images and artifacts lie in a bucket: on a server that works, and on one that
stumbles. Nothing is fetched twice, however many trials there are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from adu import storage
from adu.training.checkpoint import read_card
from pipeline.ingest import IngestConfig, ingest
from pipeline.search import main
from pipeline.tracking.server import Server
from tests.fault_proxy import fault_proxy
from tests.pipeline import commands
from tests.s3 import GUEST_BUCKET, GUEST_FOLDER, GUEST_KEY, GUEST_SECRET
from tests.tiny import tiny_backbone, tiny_images

BUCKET = "search"
FAULT_RATE = 0.05


@pytest.fixture(scope="module")
def aws(s3_environment):
    """The environment of a whole module that reaches the server itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        yield s3_environment


@pytest.fixture(scope="module")
def bucket(aws, tmp_path_factory) -> Path:
    """A folder with a model; images and their manifest lie in a bucket."""
    folder = tmp_path_factory.mktemp("s3-search")
    tiny_backbone(folder / "model")
    put(tiny_images(folder / "images"), f"{BUCKET}/images")
    ingest(IngestConfig(source=f"s3://{BUCKET}/images", out=f"s3://{BUCKET}/manifest", name="tiny"))
    return folder


def put(folder: Path, place: str) -> None:
    fs, path = storage.filesystem_for(f"s3://{place}")
    fs.mkdirs(place.split("/")[0], exist_ok=True)
    fs.put(str(folder), path, recursive=True)


def config(folder: Path, manifest: str, trials: int) -> dict:
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(folder / "model")},
            "data": {"manifest": manifest, "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 1, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": trials, "sampler": "random", "scheduler": "none", "tries": 0},
        "final": {"seeds": [0]},
        "resources": {"executors": 2},
        "tracking": {"register_models": False},
    }


def search(bucket: Path, proxy, name: str, trials: int) -> dict:
    """Runs a search through a proxy, with MLflow's artifacts in the bucket; gives its summary."""
    folder = bucket / name
    folder.mkdir()
    tracking = f"sqlite:///{folder}/mlflow.db"
    artifacts = f"s3://{BUCKET}/mlflow/{name}"
    MlflowClient(tracking).create_experiment("tiny", artifact_location=artifacts)
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(config(bucket, f"s3://{BUCKET}/manifest", trials)))
    code, out, err = commands.run(
        "search.py",
        ["--config", str(file), "--output", str(folder / "out"), "--tracking-uri", tracking],
        AWS_ENDPOINT_URL_S3=proxy.url,
        # A busy server takes its time; what is asked again meanwhile would be fetched twice.
        ADU_READ_TIMEOUT_S="60",
    )
    assert code == 0, out + err
    return json.loads((folder / "out" / "summary.json").read_text())


@pytest.fixture(scope="module")
def steady(bucket, aws):
    """Two trials on a server that works: the summary, and what was fetched."""
    with fault_proxy(aws["AWS_ENDPOINT_URL_S3"]) as proxy:
        return search(bucket, proxy, "steady", 2), proxy.gets(f"/{BUCKET}/")


@pytest.fixture(scope="module")
def stumbling(bucket, aws):
    """Eight trials on a server that breaks 5 % of the requests."""
    with fault_proxy(aws["AWS_ENDPOINT_URL_S3"], FAULT_RATE, seed=1) as proxy:
        summary = search(bucket, proxy, "stumbling", 8)
        assert sum(proxy.broken.values()) > 0
        return summary, proxy.gets(f"/{BUCKET}/")


def of_images(gets: Counter[str]) -> Counter[str]:
    return Counter({path: n for path, n in gets.items() if "/images/" in path})


def test_two_executors_and_four_final_runs_fetch_each_image_once(steady):
    _, gets = steady
    assert set(of_images(gets).values()) == {1}
    everything = storage.filesystem_for(f"s3://{BUCKET}")[0].find(f"{BUCKET}/images")
    assert {path.lstrip("/") for path in of_images(gets)} < set(everything)


def test_more_trials_fetch_nothing_more(steady, stumbling):
    (two, few), (eight, many) = steady, stumbling
    assert (two["studies"][0]["n_trials"], eight["studies"][0]["n_trials"]) == (2, 8)
    assert of_images(few) == of_images(many)


def test_faults_change_no_metric(steady, stumbling):
    calm, rough = (summary["studies"][0] for summary, _ in (steady, stumbling))
    assert steady[0]["manifest_digest"] == stumbling[0]["manifest_digest"]
    assert calm["baselines"] == rough["baselines"]


def test_checkpoint_and_pictures_are_in_the_bucket(bucket, stumbling):
    client = Server(f"sqlite:///{bucket}/stumbling/mlflow.db").client()
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    (best,) = (
        run for run in runs if (run.data.tags["stage"], run.data.tags["level"]) == ("best", "seed")
    )
    url = storage.join(best.info.artifact_uri, "checkpoint.safetensors")
    assert url.startswith(f"s3://{BUCKET}/mlflow/stumbling/")
    assert read_card(storage.read_bytes(url), url).run.forget == ("sketch",)
    (study,) = (run for run in runs if run.data.tags["stage"] == "study")
    assert client.list_artifacts(study.info.run_id, "pictures")


# --- what is told before anything starts --------------------------------------------------------


def refused(capsys, folder: Path, manifest: str) -> str:
    file = folder / "refused.yaml"
    file.write_text(yaml.safe_dump(config(folder, manifest, 1)))
    assert main(["--config", str(file), "--output", str(folder / "refused")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not (folder / "refused").exists()
    return line


def test_a_wrong_key_is_told(bucket, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    line = refused(capsys, bucket, f"s3://{BUCKET}/manifest")
    assert f"s3://{BUCKET}/manifest" in line
    assert "the access key or its secret is wrong (AWS_ACCESS_KEY_ID, AWS_PROFILE)" in line


def test_a_missing_bucket_is_told(bucket, capsys):
    line = refused(capsys, bucket, "s3://nowhere-at-all/manifest")
    assert "s3://nowhere-at-all/manifest" in line and "no such bucket" in line


def test_an_image_that_may_not_be_read_is_told(bucket, capsys, monkeypatch):
    put(bucket / "images", f"{GUEST_BUCKET}/closed")
    manifest = f"s3://{GUEST_BUCKET}/{GUEST_FOLDER}/manifest"
    ingest(IngestConfig(source=f"s3://{GUEST_BUCKET}/closed", out=manifest))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", GUEST_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", GUEST_SECRET)
    line = refused(capsys, bucket, manifest)
    assert f"s3://{GUEST_BUCKET}/closed/" in line and line.endswith("permission denied")
