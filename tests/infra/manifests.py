"""Tells what is wrong with manifests, naming the place."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import pytest
import yaml

from infra.cluster.rendering import (
    LAYERS,
    render_check,
    render_ingest,
    render_layer,
    render_model,
)
from infra.cluster.secret_manifests import S3_SECRETS, SECRETS
from infra.cluster.settings import Settings, load_settings
from tests.pipeline.commands import ROOT

KUBERAY = ROOT.parent / "shared" / "kuberay"

SETTINGS = load_settings()
SEARCHES = tuple(SETTINGS.searches)
# As they stand, and with what is off in them: people outside, the Prometheus operator.
FULL = SETTINGS.model_copy(
    update={
        "mlflow": SETTINGS.mlflow.model_copy(update={"host": "mlflow.example.com"}),
        "monitoring": SETTINGS.monitoring.model_copy(update={"operator": True}),
    }
)

KUBERNETES_VERSION = "1.33"
RAY_GROUP = "ray.io/"
# Kinds of operators whose schemas are not at hand: their fields are not checked.
FOREIGN_GROUPS = ("kueue.x-k8s.io/", "postgresql.cnpg.io/", "monitoring.coreos.com/")

# What operators make: CloudNativePG's Secrets and Service of a cluster.
MADE_BY_OPERATORS = {
    ("Secret", "adu-postgres-app"),
    ("Secret", "adu-postgres-ca"),
    ("Service", "adu-postgres-rw"),
}

Manifest = dict[str, Any]


class Pod(NamedTuple):
    """A pod that an object asks for."""

    where: str
    labels: dict[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def services(settings: Settings = SETTINGS) -> list[Manifest]:
    """The layers that all searches share."""
    return [manifest for layer in LAYERS for manifest in render_layer(settings, layer)]


def jobs(settings: Settings = SETTINGS) -> list[Manifest]:
    """Every Job that is run once."""
    made = [render_check(settings, name) for name in settings.searches]
    made += [render_ingest(settings, name) for name in settings.ingests]
    made += [render_model(settings, name) for name in settings.models]
    return [manifest for manifests in made for manifest in manifests]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def ray_job(objects: Sequence[Manifest]) -> Manifest | None:
    """The RayJob's spec, that of a RayCronJob included."""
    for manifest in objects:
        if manifest["kind"] == "RayJob":
            return manifest["spec"]
        if manifest["kind"] == "RayCronJob":
            return manifest["spec"]["jobTemplate"]
    return None


def pods(objects: Sequence[Manifest]) -> list[Pod]:
    """Every pod template."""
    return [pod for manifest in objects for pod in _templates(manifest, name_of(manifest))]


def _templates(value: Any, where: str) -> Iterator[Pod]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _templates(item, f"{where}[{index}]")
    if not isinstance(value, dict):
        return
    spec = value.get("spec")
    if isinstance(spec, dict) and "containers" in spec:
        yield Pod(where, value.get("metadata", {}).get("labels", {}), spec)
        return
    for key, item in value.items():
        yield from _templates(item, f"{where}.{key}")


# Schemas


@functools.cache
def _ray_validator(kind: str) -> jsonschema.Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = KUBERAY / f"ray.io_{kind.lower()}s.yaml"
    versions = yaml.load(file.read_text(), loader)["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses fields it does not know, as `kubectl apply` would drop them."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in made:
            made[key] = {name: strict(inner) for name, inner in made[key].items()}
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = strict(made[key])
    for key in ("anyOf", "allOf", "oneOf"):
        if key in made:
            made[key] = [strict(inner) if "properties" in inner else inner for inner in schema[key]]
    open_ended = made.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in made and "additionalProperties" not in made and not open_ended:
        made["additionalProperties"] = False
    return made


def schema_problems(objects: Sequence[Manifest]) -> list[str]:
    """What the schemas of Kubernetes and KubeRay refuse."""
    if not KUBERAY.is_dir():
        pytest.skip(f"{KUBERAY} is not there (KubeRay's schemas)")
    return [text for o in objects for text in _schema_problems(json.dumps(o, sort_keys=True))]


# Overlays have most of their objects in common.
@functools.cache
def _schema_problems(text: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    version = manifest["apiVersion"]
    if version.startswith(RAY_GROUP):
        errors = list(_ray_validator(manifest["kind"]).iter_errors(manifest))
    elif version.startswith(FOREIGN_GROUPS):
        errors = []
    else:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
            errors = []
        except jsonschema.ValidationError as error:
            errors = [error]
    return tuple(
        f"{name_of(manifest)} {'.'.join(str(part) for part in error.path)}: {error.message[:200]}"
        for error in errors
    )


# References


def made_secrets() -> set[tuple[str, str]]:
    """The Secrets that `cluster.py secrets` makes, and the certificate that an admin brings."""
    return {("Secret", name) for name in (*SECRETS, *S3_SECRETS, SETTINGS.mlflow.tls_secret)}


def reference_problems(objects: Sequence[Manifest]) -> list[str]:
    """Names of objects that neither are there nor are said to be made by somebody."""
    there = {(o["kind"], o["metadata"]["name"]) for o in objects}
    there |= MADE_BY_OPERATORS | made_secrets() | {("ServiceAccount", "default")}
    needed = [reference for o in objects for reference in _references(o, name_of(o))]
    return [
        f"{where}: no {kind} '{name}'" for where, kind, name in needed if (kind, name) not in there
    ]


# Key of a mapping, and the kind of the object whose `name` it holds.
NAMED = {
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
}
# Keys that hold a name themselves.
NAMES = {
    "secretName": "Secret",
    "serviceAccountName": "ServiceAccount",
    "claimName": "PersistentVolumeClaim",
    "serviceName": "Service",
    "clusterQueue": "ClusterQueue",
}
# Hosts that are answered to, and files, are no references.
HOST_LISTS = ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS")
FILE_NAME = re.compile(r"^[\w-]+\.\w+$")
HOST_IN_URL = re.compile(r"(?:^|=|\s)(?!s3:)[a-z0-9+]+://([^/:\s]+)")
HOST_AND_PORT = re.compile(r"^([a-z][a-z0-9-]*):\d+$")


def _references(value: Any, where: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, f"{where}[{index}]")
    elif isinstance(value, str):
        for host in (*HOST_IN_URL.findall(value), *HOST_AND_PORT.findall(value)):
            yield where, "Service", host.split(".")[0]
    elif isinstance(value, dict):
        yield from _named(value, where)
        for key, item in value.items():
            if key not in ("annotations", "image", *HOST_LISTS) and not FILE_NAME.match(key):
                yield from _references(item, f"{where}.{key}")


def _named(value: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    for key, kind in NAMED.items():
        if key in value and not value[key].get("optional"):
            yield f"{where}.{key}", kind, value[key]["name"]
    for key, kind in NAMES.items():
        if key in value:
            yield f"{where}.{key}", kind, value[key]
    for volume in value.get("volumes", ()):
        if "configMap" in volume:
            yield f"{where}.volumes.{volume['name']}", "ConfigMap", volume["configMap"]["name"]
    if "kueue.x-k8s.io/queue-name" in value:
        yield where, "LocalQueue", value["kueue.x-k8s.io/queue-name"]
    for flavor in value.get("flavors", ()):
        yield where, "ResourceFlavor", flavor["name"]
    backend = value.get("backend")
    if isinstance(backend, dict) and "service" in backend:
        yield f"{where}.backend", "Service", backend["service"]["name"]


# What a pod must have


def container_problems(objects: Sequence[Manifest]) -> list[str]:
    """Containers without requests, limits, probes' targets, or a locked-down security context."""
    problems = []
    for pod in pods(objects):
        problems += [f"{pod.where}: {text}" for text in _pod_problems(pod)]
        for container in pod.containers:
            where = f"{pod.where} container {container['name']}"
            problems += [f"{where}: {text}" for text in _container_problems(container, pod)]
    job = ray_job(objects)
    if job and job["rayClusterSpec"].get("enableInTreeAutoscaling"):
        autoscaler = {"name": "autoscaler", **job["rayClusterSpec"]["autoscalerOptions"]}
        problems += [f"autoscaler: {text}" for text in _locked_down(autoscaler)]
        problems += [f"autoscaler: {text}" for text in _amounts(autoscaler)]
    return problems


def _pod_problems(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if pod.spec.get("automountServiceAccountToken") is not False and not _autoscales(pod):
        yield "mounts a token of Kubernetes' API"
    for host in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(host):
            yield f"has the node's {host}"
    volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
    volumes |= {"data"} if "StatefulSet" in pod.where else set()
    for container in pod.containers:
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"container {container['name']} mounts '{mount['name']}', which is no volume"
    if any("hostPath" in volume for volume in pod.spec.get("volumes", ())):
        yield "mounts a folder of the node"


def _autoscales(pod: Pod) -> bool:
    return pod.labels.get("adu-search/scales") == "true"


def _container_problems(container: Manifest, pod: Pod) -> Iterator[str]:
    yield from _locked_down(container)
    yield from _amounts(container)
    image = container.get("image", "")
    if ":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest"):
        yield f"image '{image}' is not pinned"
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
    role = pod.labels.get("adu-search/role")
    if role in ("head", "worker"):
        for needed in ("/tmp", "/tmp/ray", "/dev/shm", "/home/adu"):
            if needed not in mounts:
                yield f"'{needed}' cannot be written"
    ends = pod.spec.get("restartPolicy") == "Never" and role not in ("head", "worker")
    if not ends and container not in pod.spec.get("initContainers", ()):
        yield from (
            f"no {probe}" for probe in ("livenessProbe", "readinessProbe") if probe not in container
        )


def _locked_down(container: Manifest) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write its root file system"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if context.get("privileged"):
        yield "is privileged"


def _amounts(container: Manifest) -> Iterator[str]:
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for name in ("cpu", "memory"):
            if name not in resources.get(kind, {}):
                yield f"no {name} in {kind}"


# Secrets

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL|API_KEY", re.IGNORECASE)
URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
AWS_KEY = re.compile(r"\bAKIA[0-9A-Z]{16}\b")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")


def secret_problems(objects: Sequence[Manifest]) -> list[str]:
    """Values that should have been references to a Secret, and Secrets with values."""
    problems = []
    for manifest in objects:
        if manifest["kind"] == "Secret":
            problems.append(f"{name_of(manifest)}: a Secret is created by hand, not from a file")
        problems += _plain(manifest, name_of(manifest))
    return problems


def _plain(value: Any, where: str) -> list[str]:
    if isinstance(value, list):
        return [text for i, item in enumerate(value) for text in _plain(item, f"{where}[{i}]")]
    if isinstance(value, dict):
        found = [text for key, item in value.items() for text in _plain(item, f"{where}.{key}")]
        name, plain = value.get("name"), value.get("value")
        if isinstance(name, str) and SECRET_NAME.search(name) and plain:
            found.append(f"{where}: {name} has a plain value")
        if isinstance(value.get("redisPassword"), dict) and "value" in value["redisPassword"]:
            found.append(f"{where}.redisPassword: has a plain value")
        found += [
            f"{where}.{key}: has a plain value"
            for key, item in value.items()
            if where.endswith(".data") and SECRET_NAME.search(key) and item
        ]
        return found
    patterns = (URL_WITH_PASSWORD, AWS_KEY, PRIVATE_KEY)
    if isinstance(value, str) and any(pattern.search(value) for pattern in patterns):
        return [f"{where}: holds a secret"]
    return []


def all_problems(objects: Sequence[Manifest]) -> list[str]:
    """Everything that is wrong with a set of objects that is applied together."""
    checks = (schema_problems, reference_problems, container_problems, secret_problems)
    return [text for check in checks for text in check(objects)]


def mutated(objects: Sequence[Manifest]) -> list[Manifest]:
    """A copy to break."""
    return copy.deepcopy(list(objects))
