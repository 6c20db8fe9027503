"""Says what a cluster lacks for the settings, before anything is applied."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.cluster.rendering import LAYERS, as_yaml, render_layer, render_search
from infra.cluster.secret_manifests import S3_KEYS, S3_SECRETS, SECRETS
from infra.cluster.settings import Settings

KUBERNETES = (1, 29)
KUBERAY, KUBERAY_CRON = (1, 6), (1, 7)
CLOUD_NATIVE_PG = (1, 25)
# A head that starts anew on another node may take this long; KubeRay 1.7 waits 300 s by itself.
STATUS_TIMEOUT_S = 1800
TIMEOUT_S = 60

OPERATOR = "app.kubernetes.io/component=kuberay-operator"
POSTGRES_OPERATOR = "app.kubernetes.io/name=cloudnative-pg"


@dataclass(frozen=True)
class Finding:
    """What was looked at.

    Attributes:
        what: The thing.
        problem: What is wrong with it and what to do; empty: nothing.
        fatal: Whether a search cannot run so.
    """

    what: str
    problem: str = ""
    fatal: bool = True


class KubectlError(Exception):
    """What kubectl said."""


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Runs kubectl on the current context.

    Raises:
        KubectlError: If it is not there, fails or does not answer.
    """
    command = ["kubectl", *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise KubectlError("kubectl is not installed") from None
    except subprocess.TimeoutExpired:
        raise KubectlError(f"no answer within {TIMEOUT_S} s") from None
    if done.returncode:
        raise KubectlError(" ".join(done.stderr.split())[-300:])
    return done.stdout


def examine(settings: Settings) -> Iterator[Finding]:
    """Looks at everything that the settings need, one thing after another."""
    try:
        version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]
    except (KubectlError, KeyError) as error:
        yield Finding("cluster", f"cannot be reached: {error}")
        return
    yield _version("Kubernetes", version["gitVersion"], KUBERNETES)
    looks = (
        _crds,
        _kuberay,
        _cloud_native_pg,
        _volumes,
        _gpus,
        _images,
        _secrets,
        _quotas,
        _admission,
    )
    for look in looks:
        try:
            yield from look(settings)
        except KubectlError as error:
            yield Finding(look.__name__.strip("_").replace("_", " "), str(error))


def _get(kind: str, *arguments: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-o", "json", *arguments))[
        "items"
    ]
    return items


def _version(what: str, text: str, least: tuple[int, int]) -> Finding:
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None:
        return Finding(what, f"'{text}' tells no version: {_dotted(least)} or later?", fatal=False)
    low = (int(found[1]), int(found[2])) < least
    return Finding(what, f"{text}: {_dotted(least)} or later is needed" if low else "")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _crds(settings: Settings) -> Iterator[Finding]:
    needed = {
        "rayjobs.ray.io": "KubeRay (see infra/README.md)",
        "clusters.postgresql.cnpg.io": "CloudNativePG",
    }
    searches = settings.searches.values()
    if any(search.schedule for search in searches):
        needed["raycronjobs.ray.io"] = "KubeRay 1.7 with the feature gate RayCronJob"
    if any(search.queue for search in searches):
        needed["localqueues.kueue.x-k8s.io"] = "Kueue with the integration ray.io/rayjob"
    if settings.monitoring.operator:
        needed["podmonitors.monitoring.coreos.com"] = "the Prometheus operator"
    there = {crd["metadata"]["name"] for crd in _get("crd")}
    for name, source in needed.items():
        yield Finding(f"CRD {name}", "" if name in there else f"is not there: install {source}")


def _kuberay(settings: Settings) -> Iterator[Finding]:
    found = _get("deployments", "--all-namespaces", "-l", OPERATOR)
    if not found:
        yield Finding(
            "KubeRay", f"no operator with the label {OPERATOR}, by which policies let it in"
        )
        return
    (container, *_) = found[0]["spec"]["template"]["spec"]["containers"]
    scheduled = any(search.schedule for search in settings.searches.values())
    tag = container["image"].rsplit(":", 1)[-1]
    yield _version("KubeRay", tag, KUBERAY_CRON if scheduled else KUBERAY)
    gates = " ".join(container.get("args", ()))
    if scheduled:
        missing = "RayCronJob=true" not in gates
        yield Finding("KubeRay's feature gate RayCronJob", "is off" if missing else "")
    values = {variable["name"]: variable.get("value", "") for variable in container.get("env", ())}
    waits = values.get("RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "300")
    short = not waits.isdigit() or int(waits) < STATUS_TIMEOUT_S
    yield Finding(
        "KubeRay's RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS",
        f"{waits}: a head that needs longer to start anew ends its search for good "
        f"(set {STATUS_TIMEOUT_S})"
        if short
        else "",
        fatal=False,
    )
    kept = values.get("DELETE_RAYJOB_CR_AFTER_JOB_FINISHES", "false").lower() != "true"
    yield Finding(
        "KubeRay's DELETE_RAYJOB_CR_AFTER_JOB_FINISHES",
        "is not set: RayJobs that have ended pile up" if kept else "",
        fatal=False,
    )


def _cloud_native_pg(settings: Settings) -> Iterator[Finding]:
    found = _get("deployments", "--all-namespaces", "-l", POSTGRES_OPERATOR)
    if not found:
        yield Finding("CloudNativePG", f"no operator with the label {POSTGRES_OPERATOR}")
        return
    image = found[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    yield _version("CloudNativePG", image.rsplit(":", 1)[-1], CLOUD_NATIVE_PG)


def _volumes(settings: Settings) -> Iterator[Finding]:
    classes = _get("storageclasses")
    wanted = settings.storage.volume_class
    if wanted:
        there = any(c["metadata"]["name"] == wanted for c in classes)
        yield Finding(
            f"StorageClass {wanted}", "" if there else "is not there (storage.volume_class)"
        )
        return
    key = "storageclass.kubernetes.io/is-default-class"
    default = any(c["metadata"].get("annotations", {}).get(key) == "true" for c in classes)
    problem = "" if default else "there is none: set storage.volume_class"
    yield Finding("default StorageClass", problem)


def _gpus(settings: Settings) -> Iterator[Finding]:
    nodes = [node["status"]["allocatable"] for node in _get("nodes")]
    for name, search in settings.searches.items():
        if search.gpus:
            there = sum(int(node.get(search.gpu_resource, 0)) for node in nodes)
            short = f"{there} {search.gpu_resource} on all nodes, {search.workers} needed "
            short += "(the device plug-in, and the driver on the nodes)"
            # Nodes of a cluster that scales itself may be yet to come.
            yield Finding(f"GPUs of {name}", "" if there >= search.workers else short, fatal=False)


def _images(settings: Settings) -> Iterator[Finding]:
    for name in ("cpu", "cuda", "redis", "postgres"):
        image = getattr(settings.images, name)
        problem = "" if "@sha256:" in image else f"{image}: a tag may change; add @sha256:..."
        yield Finding(f"image {name}", problem, fatal=False)


def _secrets(settings: Settings) -> Iterator[Finding]:
    there = {
        secret["metadata"]["name"]: set(secret.get("data", {}))
        for secret in _get("secrets", "-n", settings.namespace)
    }
    wanted = {name: set(keys) for name, keys in SECRETS.items()}
    wanted |= {name: set(S3_KEYS) for name in S3_SECRETS}
    if settings.mlflow.host:
        wanted[settings.mlflow.tls_secret] = {"tls.crt", "tls.key"}
    for name, keys in wanted.items():
        if name not in there:
            yield Finding(f"Secret {name}", "is not there (cluster.py secrets)")
        else:
            missing = sorted(keys - there[name])
            yield Finding(f"Secret {name}", f"has no key {missing[0]}" if missing else "")


def _quotas(settings: Settings) -> Iterator[Finding]:
    """Each ResourceQuota of the namespace against the largest search."""
    for quota in _get("resourcequotas", "-n", settings.namespace):
        name = quota["metadata"]["name"]
        hard = quota["spec"].get("hard", {})
        for search_name, search in settings.searches.items():
            needs = {
                "pods": 2.0 + search.workers,
                "limits.memory": search.memory_gib * 2.0**30,
                "requests.memory": search.memory_gib * 2.0**30,
                f"requests.{search.gpu_resource}": float(search.workers * search.gpus),
            }
            for what, need in needs.items():
                if what in hard and _amount(hard[what]) < need:
                    shown = f"{need / 2**30:g}Gi" if what.endswith("memory") else f"{need:g}"
                    problem = f"{what} {hard[what]}: search {search_name} needs {shown}"
                    yield Finding(f"ResourceQuota {name}", problem)


UNITS = {
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def _amount(text: str) -> float:
    """A quantity of Kubernetes' as a number."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGT]i?|Ki)?", text)
    if found is None:
        return float("inf")
    unit = found[2] or ""
    return float(found[1]) * (0.001 if unit == "m" else UNITS.get(unit, 1))


def _admission(settings: Settings) -> Iterator[Finding]:
    """Has the cluster look at all objects as if they were applied: policies that deny say so."""
    layers = {layer: render_layer(settings, layer) for layer in LAYERS}
    layers |= {f"search {name}": render_search(settings, name) for name in settings.searches}
    for name, manifests in layers.items():
        yield Finding(f"admission of {name}", _refusal(as_yaml(manifests)))


def _refusal(text: str) -> str:
    try:
        kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
    except KubectlError as error:
        return str(error)
    return ""


def problems(findings: Sequence[Finding]) -> bool:
    """Whether anything keeps a search from running."""
    return any(finding.problem and finding.fatal for finding in findings)
