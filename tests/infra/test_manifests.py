"""What is rendered fits its schemas, hangs together and is locked down."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.server import security_utils

from infra.cluster.rendering import LAYERS, render_layer, render_search
from infra.cluster.secret_manifests import S3_SECRETS, SECRETS
from pipeline.command import load_config
from pipeline.executors.resources import count_executors
from pipeline.jobs.config import SHORTCUTS, SearchConfig
from tests.infra.manifests import (
    FULL,
    SEARCHES,
    SETTINGS,
    all_problems,
    jobs,
    name_of,
    pods,
    ray_job,
    services,
)
from tests.pipeline.commands import ROOT
from tests.tiny import tiny_backbone

GIB = 2**30
# Decoded images take this share of what is free in shared memory.
FREE_SHARE = 0.5


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["default", "full"])
def test_the_layers_are_sound(settings):
    assert all_problems(services(settings)) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_sound_on_them(name):
    assert all_problems([*services(), *render_search(SETTINGS, name)]) == []


def test_jobs_are_sound_on_them():
    assert all_problems([*services(), *jobs()]) == []


def test_no_object_is_in_two_layers_or_two_searches():
    """Applying or deleting one leaves the others as they are."""
    parts = {layer: render_layer(FULL, layer) for layer in LAYERS}
    parts |= {name: render_search(FULL, name) for name in SEARCHES}
    parts["jobs"] = jobs(FULL)
    seen: dict[str, str] = {}
    for part, objects in parts.items():
        for name in map(name_of, objects):
            assert seen.setdefault(name, part) == part, name


def test_searches_share_no_label_by_which_they_are_selected():
    for name in SEARCHES:
        objects = render_search(SETTINGS, name)
        (budget,) = [o for o in objects if o["kind"] == "PodDisruptionBudget"]
        labels = budget["spec"]["selector"]["matchLabels"]
        heads = {
            other: pod.labels
            for other in SEARCHES
            for pod in pods(render_search(SETTINGS, other))
            if pod.labels["adu-search/role"] == "head"
        }
        assert [o for o, have in heads.items() if labels.items() <= have.items()] == [name]


def config_of(name: str, tmp_path: Path) -> SearchConfig:
    """What a search's entrypoint asks for, read from its ConfigMap."""
    objects = render_search(SETTINGS, name)
    (space,) = [o["data"]["space.yaml"] for o in objects if o["kind"] == "ConfigMap"]
    file = tmp_path / "space.yaml"
    file.write_text(space)
    python, script, *arguments = shlex.split(ray_job(objects)["entrypoint"])
    assert (python, script) == ("python", "pipeline/search.py")
    place = arguments.index("--config") + 1
    head = ray_job(objects)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "space"]
    assert arguments[place] == f"{mount['mountPath']}/space.yaml"
    arguments[place] = str(file)
    return load_config(SearchConfig, SHORTCUTS, arguments)


def node_of(group) -> dict[str, float]:
    """The resources of a worker as Ray counts them."""
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


@pytest.mark.parametrize("name", SEARCHES)
def test_workers_hold_the_executors_that_are_asked_for_and_no_more(name, tmp_path):
    job = ray_job(render_search(SETTINGS, name))
    resources = config_of(name, tmp_path).resources
    nodes = [
        node_of(group)
        for group in job["rayClusterSpec"]["workerGroupSpecs"]
        for _ in range(group["maxReplicas"])
    ]
    as_many_as_fit = resources.model_copy(update={"executors": None, "autoscale": False})
    assert count_executors(as_many_as_fit, nodes) == resources.executors
    # What is left of a worker would be paid for nothing.
    used = resources.executors * resources.workers_per_trial
    assert sum(node["CPU"] for node in nodes) == used * resources.cpus_per_worker
    assert sum(node["GPU"] for node in nodes) == used * resources.gpus_per_worker


@pytest.mark.parametrize("name", SEARCHES)
def test_no_pod_is_evicted_for_what_it_writes(name, tmp_path):
    """Volumes stay below the container's share of the disk, shared memory below its memory."""
    data = config_of(name, tmp_path).context.data
    cache_gib = data.cache_gib
    for pod in pods(render_search(SETTINGS, name)):
        volumes = [v["emptyDir"] for v in pod.spec["volumes"] if "emptyDir" in v]
        disk = sum(gib(v["sizeLimit"]) for v in volumes if v.get("medium") != "Memory")
        shm = sum(gib(v["sizeLimit"]) for v in volumes if v.get("medium") == "Memory")
        (container,) = pod.spec["containers"]
        limits = container["resources"]["limits"]
        assert disk < gib(limits["ephemeral-storage"]), pod.where
        assert shm < gib(limits["memory"]), pod.where
        if pod.labels["adu-search/role"] == "worker":
            (tmp,) = [v for v in pod.spec["volumes"] if v["name"] == "tmp"]
            assert FREE_SHARE * (shm - 1) >= cache_gib
            assert gib(tmp["emptyDir"]["sizeLimit"]) >= max(
                2 * cache_gib, cache_gib + data.disk_gib
            )


def gib(text: str) -> float:
    unit = {"Gi": 1.0, "Mi": 1 / 1024}
    return float(text[:-2]) * unit[text[-2:]]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_ray_job_does_what_the_operator_cannot_be_asked_here(name):
    """Rules of KubeRay's and Kueue's webhooks that no schema tells."""
    job = ray_job(render_search(SETTINGS, name))
    cluster = job["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    groups = cluster["workerGroupSpecs"]
    assert job["shutdownAfterJobFinishes"], "a TTL needs it"
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "token authentication"
    assert "externalStorageNamespace" not in cluster["gcsFaultToleranceOptions"], (
        "retries would share the control store's state"
    )
    assert "--resume-or-start" in job["entrypoint"] and job["backoffLimit"] > 0
    assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert job["submitterConfig"]["backoffLimit"] > 20, "a broken log stream is no failure"
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"
        policies = [g["template"]["spec"].get("restartPolicy") for g in (head, *groups)]
        assert set(policies) == {"Never"}, "autoscaler v2 takes no other"
        assert head["template"]["spec"]["automountServiceAccountToken"]
        assert all(group["minReplicas"] == group["replicas"] for group in groups)
    else:
        assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in groups)
    for group in (head, *groups):
        (container,) = group["template"]["spec"]["containers"]
        (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < gib(shm["emptyDir"]["sizeLimit"]) * GIB, "it must fit into its volume"
        assert "command" not in container and "args" not in container, "the operator's to set"


@pytest.mark.parametrize("name", SEARCHES)
def test_a_lost_node_is_left_before_kuberay_gives_the_head_up(name):
    """KubeRay 1.7 waits 300 s for the head; Kubernetes by itself leaves a node after as long."""
    for pod in pods(render_search(SETTINGS, name)):
        patience_s = {
            toleration["key"]: toleration["tolerationSeconds"]
            for toleration in pod.spec["tolerations"]
            if "tolerationSeconds" in toleration
        }
        assert patience_s == {
            "node.kubernetes.io/not-ready": 30,
            "node.kubernetes.io/unreachable": 30,
        }
        if pod.labels["adu-search/role"] != "worker":
            assert pod.containers[0]["image"] == SETTINGS.images.cpu, "pulled in time"


def test_tries_of_one_night_end_before_the_next():
    (cron,) = [o for o in render_search(SETTINGS, "nightly") if o["kind"] == "RayCronJob"]
    spec = cron["spec"]["jobTemplate"]
    assert (1 + spec["backoffLimit"]) * spec["activeDeadlineSeconds"] < 24 * 3600
    assert "$RUN_NAME" in spec["entrypoint"], "each night is a search of its own"


def test_spot_instances_carry_workers_alone():
    job = ray_job(render_search(SETTINGS, "spot"))
    cluster = job["rayClusterSpec"]
    key = "karpenter.sh/capacity-type"
    (group,) = cluster["workerGroupSpecs"]
    assert group["template"]["spec"]["nodeSelector"][key] == "spot"
    for pod in (cluster["headGroupSpec"]["template"], job["submitterPodTemplate"]):
        assert pod["spec"]["nodeSelector"][key] == "on-demand"


def test_a_checked_search_is_the_one_that_will_run(tmp_path):
    assert config_of("smoke", tmp_path).forget == (("sketch",),)
    checks = {
        pod.where.split("/")[1].split(".")[0]: pod.containers[0]["command"]
        for pod in pods(jobs())
        if "--dry-run" in pod.containers[0]["command"]
    }
    for name in SEARCHES:
        words = ray_job(render_search(SETTINGS, name))["entrypoint"].replace("$RUN_NAME", name)
        assert checks[f"{name}-check"] == [*words.split(), "--dry-run"]


def mlflow_settings(settings):
    return next(
        o["data"] for o in services(settings) if "MLFLOW_SERVER_ALLOWED_HOSTS" in o.get("data", {})
    )


def test_a_browser_may_use_mlflow_from_outside(monkeypatch):
    """MLflow's own checks of host and origin, with the settings that its pod gets."""
    for name, value in mlflow_settings(FULL).items():
        monkeypatch.setenv(name, value)
    origins = security_utils.get_allowed_origins_from_env()
    hosts = security_utils.get_allowed_hosts_from_env()
    blocked = security_utils.should_block_cors_request
    assert not blocked("https://mlflow.example.com", "POST", origins)
    assert blocked("https://evil.example.com", "POST", origins)
    for host in ("mlflow.example.com", "mlflow:5000", "localhost:5000"):
        assert security_utils.is_allowed_host_header(hosts, host)
    assert not security_utils.is_allowed_host_header(hosts, "evil.example.com")


def test_mlflow_that_leaves_the_cluster_asks_who_is_there_and_speaks_tls():
    (ingress,) = [o for o in services(FULL) if o["kind"] == "Ingress"]
    hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
    assert hosts == {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}
    assert not [o for o in services() if o["kind"] == "Ingress"]
    (deployment,) = [o for o in services() if o["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["--app-name", "basic-auth"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}, "migrations run alone"
    assert mlflow_settings(SETTINGS)["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_whoever_speaks_to_postgres_verifies_it():
    speakers = [
        container
        for pod in pods(services())
        for container in pod.containers
        if any(variable["name"] == "PGPASSWORD" for variable in container.get("env", ()))
    ]
    assert {container["name"] for container in speakers} == {"migrate", "mlflow", "dump"}
    for container in speakers:
        values = {v["name"]: v.get("value") for v in container["env"]}
        assert values["PGSSLMODE"] == "verify-full"
        folder, name = values["PGSSLROOTCERT"].rsplit("/", 1)
        assert name == "ca.crt"
        assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_whoever_reads_a_bucket_is_told_its_region_as_boto3_reads_it():
    for pod in pods([*services(), *jobs(), *render_search(SETTINGS, "smoke")]):
        for container in pod.containers:
            names = {variable["name"] for variable in container.get("env", ())}
            assert ("AWS_SECRET_ACCESS_KEY" in names) == ("AWS_DEFAULT_REGION" in names)


def test_every_secret_is_used():
    needed = repr([services(FULL), jobs(FULL), render_search(FULL, "smoke")])
    for name in (*SECRETS, *S3_SECRETS):
        assert f"'{name}'" in needed, name


def test_namespace_and_images_come_from_the_settings():
    other = SETTINGS.model_copy(
        update={
            "namespace": "team-a",
            "images": SETTINGS.images.model_copy(update={"cpu": "ghcr.io/me/adu:1-cpu"}),
        }
    )
    objects = [*services(other), *jobs(other), *render_search(other, "smoke")]
    text = yaml.safe_dump_all(objects)
    assert "registry.example.com/adu-search:0.1.0-cpu" not in text
    namespaces = {o["metadata"]["namespace"] for o in objects if "namespace" in o["metadata"]}
    assert namespaces == {"team-a"}


def test_no_password_is_on_a_command_line():
    for pod in pods([*services(FULL), *jobs(FULL), *render_search(FULL, "smoke")]):
        for container in pod.containers:
            words = " ".join([*container.get("command", ()), *container.get("args", ())])
            named = re.findall(r"\$\{?(\w*(?:PASSWORD|SECRET|KEY)\w*)", words)
            # Redis reads its own from a pipe, which a shell's built-in fills.
            assert named in ([], ["REDIS_PASSWORD"]), pod.where


def test_the_jobs_script_copies_a_model_that_loads(tmp_path, monkeypatch):
    """What `render model` runs, with a model and a place of this machine."""
    script = ROOT / "infra" / "cluster" / "scripts" / "copy_model.py"
    target = tmp_path / "bucket" / "models" / "tiny"
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_backbone(tmp_path / "m")), str(target)])
    runpy.run_path(str(script), run_name="__main__")
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= {
        file.name for file in target.iterdir()
    }
