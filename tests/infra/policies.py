"""What network policies let through, worked out as Kubernetes describes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.infra.manifests import SETTINGS, Manifest


class End(NamedTuple):
    """One end of a connection: a pod, or an address outside the cluster."""

    labels: Mapping[str, str]
    namespace: str = SETTINGS.namespace
    address: str | None = None


def role(name: str) -> End:
    """A pod of the platform's namespace by its role."""
    return End({"adu-search/role": name})


INTERNET = End({}, "", "52.216.0.1")
METADATA = End({}, "", "169.254.169.254")
DNS = End({"k8s-app": "kube-dns"}, "kube-system")
POSTGRES = End({"cnpg.io/cluster": "adu-postgres"})
PROMETHEUS = End({"app.kubernetes.io/name": "prometheus"}, "monitoring")
INGRESS = End({"app.kubernetes.io/name": "traefik"}, "traefik")
STRANGER = End({"app": "stranger"}, "default")
# KubeRay's operator as its Helm chart and as its kustomize folder label it.
HELM = End(
    {
        "app.kubernetes.io/name": "kuberay-operator",
        "app.kubernetes.io/component": "kuberay-operator",
    },
    "kuberay-system",
)
KUSTOMIZE = End(
    {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"},
    "ray-system",
)


def allowed(
    objects: Sequence[Manifest], source: End, target: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection comes about."""
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    out = _side(policies, source, target, port, protocol, "Egress", "to")
    return out and _side(policies, target, source, port, protocol, "Ingress", "from")


def _side(
    policies: Sequence[Mapping[str, Any]],
    pod: End,
    other: End,
    port: int,
    protocol: str,
    direction: str,
    key: str,
) -> bool:
    """Whether the policies of one end let it through; those of other namespaces are not ours."""
    if pod.namespace != SETTINGS.namespace:
        return True
    chosen = [
        policy
        for policy in policies
        if direction in policy["policyTypes"] and selects(policy["podSelector"], pod.labels)
    ]
    rules = [rule for policy in chosen for rule in policy.get(direction.lower(), ())]
    return not chosen or any(_matches(rule, key, other, port, protocol) for rule in rules)


def _matches(rule: Mapping[str, Any], key: str, other: End, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(p["port"] == port and p["protocol"] == protocol for p in ports):
        return False
    peers = rule.get(key)
    return not peers or any(_is_peer(peer, other) for peer in peers)


def _is_peer(peer: Mapping[str, Any], other: End) -> bool:
    return all(_conditions(peer, other))


def _conditions(peer: Mapping[str, Any], other: End) -> Iterator[bool]:
    if "ipBlock" in peer:
        yield other.address is not None and _in_block(peer["ipBlock"], other.address)
        return
    yield other.address is None
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": other.namespace}
        yield selects(peer["namespaceSelector"], names)
    else:
        yield other.namespace == SETTINGS.namespace
    yield selects(peer.get("podSelector", {}), other.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    ip = ipaddress.ip_address(address)
    excluded = any(ip in ipaddress.ip_network(part) for part in block.get("except", ()))
    return ip in ipaddress.ip_network(block["cidr"]) and not excluded


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector takes a pod with these labels."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
    )
