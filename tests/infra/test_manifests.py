"""Every overlay of infra/ renders, fits its schemas, hangs together and is locked down.

Each check is shown a broken manifest too: a check that cannot fail protects nothing.
"""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from pipeline.command import load_config
from pipeline.executors.resources import count_executors
from pipeline.jobs.config import SHORTCUTS, SearchConfig
from tests.infra.manifests import (
    INFRA,
    OVERLAYS,
    SERVICES,
    all_problems,
    annotations,
    container_problems,
    documented_secrets,
    mutated,
    pods,
    ray_job,
    reference_problems,
    render,
    render_folder,
    schema_problems,
    secret_problems,
)
from tests.pipeline.commands import ROOT

GIB = 2**30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_sound_with_the_services_it_needs(overlay):
    objects = render("kuberay/overlays/" + overlay.rsplit("/", 1)[-1], *SERVICES)
    assert all_problems(objects) == []


def test_every_overlay_is_there():
    assert [overlay.rsplit("/", 1)[-1] for overlay in OVERLAYS] == [
        "cpu-smoke",
        "multi-gpu",
        "nightly",
        "queued",
        "single-gpu",
        "spot",
    ]


def config_of(job) -> SearchConfig:
    """What the entrypoint asks for, the variables left as they are."""
    python, script, *arguments = shlex.split(job["entrypoint"])
    assert (python, script) == ("python", "pipeline/search.py")
    # The file is named from the image's working directory, which is laid out as this repository.
    place = arguments.index("--config") + 1
    arguments[place] = str(ROOT / arguments[place])
    return load_config(SearchConfig, SHORTCUTS, arguments)


def node_of(group) -> dict[str, float]:
    """The resources of a worker as Ray counts them."""
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_hold_the_executors_that_are_promised_and_asked_for(overlay):
    objects = render(overlay)
    job = ray_job(objects)
    promised = int(annotations(objects)["adu-search/executors"])
    resources = config_of(job).resources
    nodes = [
        node_of(group)
        for group in job["rayClusterSpec"]["workerGroupSpecs"]
        for _ in range(group["maxReplicas"])
    ]
    as_many_as_fit = resources.model_copy(update={"executors": None})
    assert count_executors(as_many_as_fit, nodes) == promised
    assert resources.executors == promised
    # What is left of a worker would be paid for nothing.
    used = promised * resources.workers_per_trial
    assert sum(node["CPU"] for node in nodes) == used * resources.cpus_per_worker
    assert sum(node["GPU"] for node in nodes) == used * resources.gpus_per_worker


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_ray_job_does_what_the_operator_cannot_be_asked_here(overlay):
    """Rules of KubeRay's and Kueue's webhooks that no schema tells."""
    objects = render(overlay)
    job = ray_job(objects)
    cluster = job["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    groups = cluster["workerGroupSpecs"]
    assert job["shutdownAfterJobFinishes"], "a TTL needs it"
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "token authentication"
    assert "externalStorageNamespace" not in cluster["gcsFaultToleranceOptions"], (
        "retries would share the control store's state"
    )
    assert "--resume" in job["entrypoint"] and job["backoffLimit"] > 0
    assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"
        policies = [g["template"]["spec"].get("restartPolicy") for g in (head, *groups)]
        assert set(policies) == {"Never"}, "autoscaler v2 takes no other"
        assert head["template"]["spec"]["automountServiceAccountToken"]
        assert all(group["minReplicas"] == 0 == group["replicas"] for group in groups)
        assert not overlay.endswith("queued"), "Kueue admits no cluster that scales itself"
    else:
        assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in groups)
    for group in (head, *groups):
        (container,) = group["template"]["spec"]["containers"]
        (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
        assert store < GIB, "the object store must fit into its volume"
        assert "command" not in container and "args" not in container, "the operator's to set"


def test_the_overlay_of_the_readme_renders(tmp_path):
    text = (INFRA / "README.md").read_text()
    (overlay,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shutil.copytree(INFRA / "kuberay", tmp_path / "kuberay")
    folder = tmp_path / "kuberay" / "overlays" / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(overlay)
    objects = render_folder(folder)
    (job,) = [o for o in objects if o["kind"] == "RayJob"]
    assert job["metadata"]["name"] == "pacs-1"
    image = "ghcr.io/me/adu-search:0.1.0-cuda"
    assert {c["image"] for pod in pods([job]) for c in pod.containers} == {image}
    (settings,) = [o["data"] for o in objects if o["kind"] == "ConfigMap"]
    assert settings["MANIFEST"] == "s3://mine/manifests/pacs"
    assert settings["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_spot_instances_carry_workers_alone():
    job = ray_job(render("kuberay/overlays/spot"))
    cluster = job["rayClusterSpec"]
    key = "karpenter.sh/capacity-type"
    (group,) = cluster["workerGroupSpecs"]
    assert group["template"]["spec"]["nodeSelector"][key] == "spot"
    for pod in (cluster["headGroupSpec"]["template"], job["submitterPodTemplate"]):
        assert pod["spec"]["nodeSelector"][key] == "on-demand"


def test_mlflow_that_leaves_the_cluster_asks_who_is_there_and_speaks_tls():
    objects = render("mlflow/overlays/ingress")
    (ingress,) = [o for o in objects if o["kind"] == "Ingress"]
    hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
    assert hosts <= {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}
    for folder in ("mlflow/base", "mlflow/overlays/ingress"):
        (deployment,) = [o for o in render(folder) if o["kind"] == "Deployment"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["--app-name", "basic-auth"]
    settings = next(
        o["data"] for o in objects if "MLFLOW_SERVER_ALLOWED_HOSTS" in o.get("data", {})
    )
    assert hosts <= set(settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))


def test_nobody_but_those_named_reaches_a_pod():
    """A namespace that denies everything, and a policy for every kind of pod."""
    objects = render("kuberay/overlays/multi-gpu", *SERVICES)
    policies = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    denied = policies["deny-all"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    roles = {pod.labels["adu-search/role"] for pod in pods(objects)}
    assert roles == {"head", "worker", "submitter", "redis", "mlflow"}
    served = {
        role
        for spec in policies.values()
        for role in roles
        if _selects(spec["podSelector"], {"adu-search/role": role})
    }
    assert served == roles
    for name, spec in policies.items():
        for rule in spec.get("ingress", ()):
            assert rule.get("from"), f"{name} lets everybody in"


def _selects(selector, labels) -> bool:
    if not selector:
        return False
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
    )


# Every check refuses something


@pytest.fixture
def objects():
    return mutated(render("kuberay/overlays/multi-gpu", *SERVICES))


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
    ("kind", "name", "problem"),
    [
        ("ConfigMap", "adu-search", "no ConfigMap 'adu-search'"),
        ("ServiceAccount", "adu-search-head", "no ServiceAccount 'adu-search-head'"),
        ("Service", "mlflow", "no Service 'mlflow'"),
        ("Service", "adu-search-redis", "no Service 'adu-search-redis'"),
    ],
)
def test_an_object_that_is_missing_is_noticed(objects, kind, name, problem):
    left = [o for o in objects if (o["kind"], o["metadata"]["name"]) != (kind, name)]
    assert any(problem in text for text in reference_problems(left))


def test_a_queue_that_is_missing_is_noticed():
    left = [o for o in render("kuberay/overlays/queued", *SERVICES) if o["kind"] != "LocalQueue"]
    assert any("no LocalQueue 'adu-search'" in text for text in reference_problems(left))


def test_a_secret_that_nobody_is_told_to_create_is_noticed(objects):
    worker_of(objects)["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] = "s3"
    assert any("no Secret 's3'" in text for text in reference_problems(objects))


def test_the_readme_lists_no_secret_that_is_not_used():
    needed = repr([render(overlay) for overlay in (*OVERLAYS, *SERVICES)])
    assert documented_secrets()
    for _, name in documented_secrets():
        assert f"'{name}'" in needed, name


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
    (settings,) = [o for o in objects if o["metadata"]["name"] == "adu-search" and "data" in o]
    settings["data"]["MLFLOW_TRACKING_PASSWORD"] = "hunter2"
    assert secret_problems(objects)


def test_a_plain_password_of_redis_is_refused(objects):
    ray_job(objects)["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisPassword"] = {
        "value": "hunter2"
    }
    assert secret_problems(objects)
