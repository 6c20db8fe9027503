"""Every check of manifests is shown a broken one: a check that cannot fail protects nothing."""

from __future__ import annotations

import pytest

from infra.cluster.rendering import render_search
from tests.infra.manifests import (
    SETTINGS,
    container_problems,
    mutated,
    name_of,
    ray_job,
    reference_problems,
    schema_problems,
    secret_problems,
    services,
)


@pytest.fixture
def objects():
    return mutated([*services(), *render_search(SETTINGS, "multi-gpu")])


def worker_of(objects):
    (group,) = ray_job(objects)["rayClusterSpec"]["workerGroupSpecs"]
    return group["template"]["spec"]


def test_an_unknown_field_is_refused(objects):
    ray_job(objects)["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisAdress"] = "x"
    assert any("'redisAdress' was unexpected" in text for text in schema_problems(objects))


def test_an_unknown_field_deep_in_a_pod_is_refused(objects):
    worker_of(objects)["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    assert any("'readOnlyRootFileSystem' was unexpected" in t for t in schema_problems(objects))


def test_an_unknown_field_of_kubernetes_own_kinds_is_refused(objects):
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    deployment["spec"]["replica"] = 2
    assert any("'replica' was unexpected" in text for text in schema_problems(objects))


def test_a_value_of_another_type_is_refused(objects):
    ray_job(objects)["backoffLimit"] = "three"
    assert any("backoffLimit" in text for text in schema_problems(objects))


def test_a_missing_limit_is_refused(objects):
    del worker_of(objects)["containers"][0]["resources"]["limits"]["memory"]
    assert any("no memory in limits" in text for text in container_problems(objects))


def test_an_autoscaler_without_limits_is_refused(objects):
    del ray_job(objects)["rayClusterSpec"]["autoscalerOptions"]["resources"]["limits"]
    assert any(text.startswith("autoscaler: no cpu") for text in container_problems(objects))


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("allowPrivilegeEscalation", "may gain privileges"),
        ("readOnlyRootFilesystem", "may write its root file system"),
        ("capabilities", "keeps capabilities"),
    ],
)
def test_a_container_that_may_more_is_refused(objects, field, problem):
    del worker_of(objects)["containers"][0]["securityContext"][field]
    assert any(problem in text for text in container_problems(objects))


def test_a_pod_that_may_be_root_is_refused(objects):
    del worker_of(objects)["securityContext"]["runAsNonRoot"]
    assert any("may run as root" in text for text in container_problems(objects))


def test_a_folder_that_ray_cannot_write_is_refused(objects):
    mounts = worker_of(objects)["containers"][0]["volumeMounts"]
    mounts.remove(next(mount for mount in mounts if mount["mountPath"] == "/tmp/ray"))
    assert any("'/tmp/ray' cannot be written" in text for text in container_problems(objects))


def test_an_image_without_a_version_is_refused(objects):
    worker_of(objects)["containers"][0]["image"] = "registry.example.com:5000/adu-search"
    assert any("is not pinned" in text for text in container_problems(objects))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ConfigMap", "multi-gpu-space"),
        ("ServiceAccount", "adu-search-head"),
        ("Service", "mlflow"),
        ("Service", "adu-search-redis"),
    ],
)
def test_an_object_that_is_missing_is_noticed(objects, kind, name):
    left = [o for o in objects if (o["kind"], o["metadata"]["name"]) != (kind, name)]
    assert any(f"no {kind} '{name}'" in text for text in reference_problems(left))


def test_a_queue_that_is_missing_is_noticed():
    left = [*services(), *render_search(SETTINGS, "queued")]
    left = [o for o in left if o["kind"] != "LocalQueue"]
    assert any("no LocalQueue 'adu-search'" in text for text in reference_problems(left))


def test_a_secret_that_nobody_is_told_to_create_is_noticed(objects):
    worker_of(objects)["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] = "s3"
    assert any("no Secret 's3'" in text for text in reference_problems(objects))


@pytest.mark.parametrize(
    "plain",
    [
        {"name": "MLFLOW_TRACKING_PASSWORD", "value": "hunter2"},
        {"name": "STORAGE", "value": "postgresql://optuna:hunter2@adu-postgres-rw/optuna"},
        {"name": "KEY", "value": "AKIAIOSFODNN7EXAMPLE"},
    ],
)
def test_a_plain_secret_is_refused(objects, plain):
    worker_of(objects)["containers"][0]["env"].append(plain)
    assert secret_problems(objects)


def test_a_plain_secret_in_a_config_map_is_refused(objects):
    (settings,) = [o for o in objects if name_of(o) == "ConfigMap/mlflow"]
    settings["data"]["MLFLOW_TRACKING_PASSWORD"] = "hunter2"
    assert secret_problems(objects)


def test_a_plain_password_of_redis_is_refused(objects):
    ray_job(objects)["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisPassword"] = {
        "value": "hunter2"
    }
    assert secret_problems(objects)
