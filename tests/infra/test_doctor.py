"""The doctor names what a cluster lacks; secrets go to kubectl and nowhere else.

`kubectl` is a small program that answers from files: what a cluster would say.
"""

from __future__ import annotations

import copy
import json
from collections import namedtuple

import pytest
import yaml

from infra.cluster import node_doctor
from infra.cluster.cluster import main
from infra.cluster.doctor import examine
from infra.cluster.node_doctor import examine_node
from infra.cluster.secret_manifests import S3_KEYS, S3_SECRETS, SECRETS
from tests.infra.manifests import SETTINGS

KUBECTL = """#!/bin/bash
place=${0%/*}
key=$1
case $1 in
    get) key=$2; [ "$5" = --all-namespaces ] && key=$2$7 ;;
    apply | diff)
        while IFS= read -r line; do echo "$line"; done > "$place/stdin"
        [ ! -e "$place/refusal" ] || { echo "$(< "$place/refusal")" >&2; exit 1; }
        exit 0 ;;
esac
[ -e "$place/${key//\\//_}" ] || { echo "no such host" >&2; exit 1; }
echo "$(< "$place/${key//\\//_}")"
"""
CRDS = (
    "rayjobs.ray.io",
    "raycronjobs.ray.io",
    "clusters.postgresql.cnpg.io",
    "localqueues.kueue.x-k8s.io",
)


def items(*found):
    return {"items": list(found)}


def deployment(image, **container):
    return {"spec": {"template": {"spec": {"containers": [{"image": image, **container}]}}}}


KUBERAY = "deploymentsapp.kubernetes.io/component=kuberay-operator"
HEALTHY = {
    "version": {"serverVersion": {"gitVersion": "v1.31.4-eks-1"}},
    "crd": items(*({"metadata": {"name": name}} for name in CRDS)),
    KUBERAY: items(
        deployment(
            "quay.io/kuberay/operator:v1.7.0",
            args=["--feature-gates=RayCronJob=true"],
            env=[
                {"name": "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "value": "1800"},
                {"name": "DELETE_RAYJOB_CR_AFTER_JOB_FINISHES", "value": "true"},
            ],
        )
    ),
    "deploymentsapp.kubernetes.io/name=cloudnative-pg": items(
        deployment("ghcr.io/cloudnative-pg/cloudnative-pg:1.25.1")
    ),
    "storageclasses": items(
        {
            "metadata": {
                "name": "gp3",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            }
        }
    ),
    "nodes": items({"status": {"allocatable": {"nvidia.com/gpu": "8"}}}),
    "secrets": items(
        *(
            {"metadata": {"name": name}, "data": dict.fromkeys(keys)}
            for name, keys in SECRETS.items()
        ),
        *({"metadata": {"name": name}, "data": dict.fromkeys(S3_KEYS)} for name in S3_SECRETS),
    ),
    "resourcequotas": items(),
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Sets what a cluster answers."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    def answer(values):
        for name in HEALTHY:
            (tmp_path / name.replace("/", "_")).unlink(missing_ok=True)
        for name, value in values.items():
            text = value if name == "refusal" else json.dumps(value)
            (tmp_path / name.replace("/", "_")).write_text(text)

    answer(HEALTHY)
    return answer


# One of each kind: a search's objects are rendered and sent.
FEW = {name: SETTINGS.searches[name] for name in ("multi-gpu", "queued", "nightly")}


def found():
    settings = SETTINGS.model_copy(update={"searches": FEW})
    return {f.what: f.problem for f in examine(settings) if f.problem and f.fatal}


def test_nothing_is_missing_in_a_cluster_that_has_it_all(cluster):
    assert found() == {}
    assert main(["doctor"]) == 0


@pytest.mark.parametrize(
    ("change", "what", "problem"),
    [
        (
            {"version": {"serverVersion": {"gitVersion": "v1.27.3"}}},
            "Kubernetes",
            "1.29 or later is needed",
        ),
        ({"crd": items()}, "CRD rayjobs.ray.io", "install KubeRay"),
        ({KUBERAY: items()}, "KubeRay", "no operator with the label"),
        (
            {KUBERAY: items(deployment("quay.io/kuberay/operator:v1.5.1"))},
            "KubeRay",
            "1.7 or later",
        ),
        (
            {KUBERAY: items(deployment("quay.io/kuberay/operator:v1.7.0"))},
            "KubeRay's feature gate RayCronJob",
            "is off",
        ),
        ({"storageclasses": items()}, "default StorageClass", "set storage.volume_class"),
        ({"secrets": items()}, "Secret mlflow-s3", "is not there"),
        (
            {
                "resourcequotas": items(
                    {"metadata": {"name": "team"}, "spec": {"hard": {"limits.memory": "64Gi"}}}
                )
            },
            "ResourceQuota team",
            "limits.memory 64Gi: search",
        ),
        (
            {"refusal": "admission webhook denied: disallow-latest"},
            "admission of platform",
            "disallow-latest",
        ),
    ],
)
def test_what_is_missing_is_named(cluster, change, what, problem):
    cluster({**copy.deepcopy(HEALTHY), **change})
    assert problem in found()[what]


def test_no_cluster_and_no_kubectl_are_told(cluster, tmp_path):
    cluster({})
    assert "cannot be reached" in found()["cluster"]
    (tmp_path / "kubectl").unlink()
    assert found() == {"cluster": "cannot be reached: kubectl is not installed"}


def test_diff_hands_the_objects_to_kubectl(cluster, tmp_path):
    assert main(["diff", "search", "smoke"]) == 0
    kinds = [o["kind"] for o in yaml.safe_load_all((tmp_path / "stdin").read_text())]
    assert kinds == ["ConfigMap", "PodDisruptionBudget", "RayJob"]
    cluster({"refusal": "differs"})
    assert main(["diff", "platform"]) == 1


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "s3.env"
    file.write_text("AWS_ACCESS_KEY_ID=me\nAWS_SECRET_ACCESS_KEY=hunter2\nOTHER=x\n")
    return file


def flags(file):
    names = ("--search-keys", "--mlflow-keys", "--postgres-backup-keys")
    return [word for name in names for word in (name, str(file))]


def test_secrets_are_random_and_whole(key_file, capsys):
    assert main(["secrets", *flags(key_file)]) == 0
    first = list(yaml.safe_load_all(capsys.readouterr().out))
    assert main(["secrets", *flags(key_file)]) == 0
    again = list(yaml.safe_load_all(capsys.readouterr().out))
    values = {s["metadata"]["name"]: s["stringData"] for s in first}
    assert {name: set(data) for name, data in values.items()} == {
        **{name: set(keys) for name, keys in SECRETS.items()},
        **{name: set(S3_KEYS) for name in S3_SECRETS},
    }
    assert values["mlflow-s3"]["AWS_SECRET_ACCESS_KEY"] == "hunter2"
    other = {s["metadata"]["name"]: s["stringData"] for s in again}
    assert values["mlflow"]["admin-password"] != other["mlflow"]["admin-password"]


def test_a_key_file_that_lacks_a_line_is_named(key_file, capsys):
    key_file.write_text("AWS_ACCESS_KEY_ID=me\n")
    assert main(["secrets", *flags(key_file)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"error: {key_file}: no line AWS_SECRET_ACCESS_KEY=...\n")


def test_a_node_without_shared_memory_or_room_is_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(node_doctor.shutil, "disk_usage", lambda _: usage(2**20))
    monkeypatch.setattr(node_doctor.resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setattr(node_doctor, "is_free", lambda port: port != 8265)
    told = {f.what: f.problem for f in examine_node(tmp_path / "not" / "yet")}
    assert "--shm-size" in told["shared memory"]
    assert told["open files"] == "256: raise it (ulimit -n 4096)"
    assert told["Ray's dashboard"] == "port 8265 is taken: give another one"
    assert "at least" in told["disk"] and told["MLflow"] == ""
