"""Who reaches whom: the policies of all layers, worked out connection by connection."""

from __future__ import annotations

import pytest

from infra.cluster.rendering import render_layer, render_search
from tests.infra.manifests import FULL, SETTINGS, pods, services
from tests.infra.policies import (
    DNS,
    HELM,
    INGRESS,
    INTERNET,
    KUSTOMIZE,
    METADATA,
    POSTGRES,
    PROMETHEUS,
    STRANGER,
    End,
    allowed,
    role,
)

SCALING_HEAD = End({"adu-search/role": "head", "adu-search/scales": "true"})
API = End({}, "", "10.0.0.1")

NEEDED = [
    (role("head"), role("worker"), 30000),
    (role("worker"), role("head"), 6379),
    (role("head"), role("redis"), 6379),
    (role("head"), role("mlflow"), 5000),
    (role("head"), INTERNET, 443),
    (role("worker"), INTERNET, 443),
    (role("submitter"), role("head"), 8265),
    (role("job"), INTERNET, 443),
    (role("job"), role("mlflow"), 5000),
    (role("mlflow"), POSTGRES, 5432),
    (role("mlflow"), INTERNET, 443),
    (role("backup"), POSTGRES, 5432),
    (role("backup"), INTERNET, 443),
    (POSTGRES, POSTGRES, 5432),
    (POSTGRES, API, 6443),
    (SCALING_HEAD, API, 6443),
    (HELM, role("head"), 8265),
    (KUSTOMIZE, role("head"), 8265),
    (PROMETHEUS, role("head"), 8080),
    (PROMETHEUS, role("worker"), 8080),
]
DENIED = [
    (role("worker"), role("mlflow"), 5000),
    (role("worker"), role("redis"), 6379),
    (role("worker"), POSTGRES, 5432),
    (role("head"), POSTGRES, 5432),
    (role("head"), API, 6443),
    (role("head"), METADATA, 443),
    (role("job"), METADATA, 443),
    (role("mlflow"), METADATA, 443),
    (role("submitter"), INTERNET, 443),
    (role("redis"), INTERNET, 443),
    (PROMETHEUS, role("head"), 8265),
    (STRANGER, role("head"), 8265),
    (STRANGER, role("mlflow"), 5000),
    (STRANGER, POSTGRES, 5432),
    (INGRESS, role("head"), 8265),
]


@pytest.mark.parametrize(("source", "target", "port"), NEEDED)
def test_what_is_needed_is_let_through(source, target, port):
    assert allowed(services(), source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), DENIED)
def test_everything_else_is_not(source, target, port):
    assert not allowed(services(FULL), source, target, port)


def test_every_pod_has_names_once_the_platform_is_there():
    """MLflow is the first thing that is applied after it, and needs its database's name."""
    platform = render_layer(SETTINGS, "platform")
    for pod in pods([*services(), *render_search(SETTINGS, "multi-gpu")]):
        assert allowed(platform, End(pod.labels), DNS, 53, "UDP"), pod.where


def test_people_outside_come_in_by_the_ingress_where_it_is_asked_for():
    assert allowed(services(FULL), INGRESS, role("mlflow"), 5000)
    assert not allowed(services(), INGRESS, role("mlflow"), 5000)


def test_a_policy_that_is_missing_is_noticed():
    left = [o for o in services() if o["metadata"]["name"] != "head"]
    assert not allowed(left, role("head"), role("redis"), 6379)
    left = [o for o in services() if o["metadata"]["name"] != "deny-all"]
    assert allowed(left, STRANGER, role("new"), 80)
    assert not allowed(services(), STRANGER, role("new"), 80)
