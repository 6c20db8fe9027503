"""Secrets: made once, and handed to kubectl by a pipe, never on a command line or in a file."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adu.errors import UserError
from infra.cluster.settings import Settings

# What each bucket's key is for; its two lines, and where it is not AWS the endpoint's.
S3_SECRETS = {
    "adu-search-s3": "the searches' bucket: head, workers, jobs",
    "mlflow-s3": "MLflow's bucket: MLflow alone",
    "postgres-backup-s3": "the backup bucket: the backup's jobs alone",
}
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_ENDPOINT = "AWS_ENDPOINT_URL_S3"

# All that pods name, with their keys; None: random, made here.
SECRETS: Mapping[str, Mapping[str, str | None]] = {
    "adu-search-redis": {"password": None},
    "adu-search-mlflow": {"username": "search", "password": None},
    "mlflow": {"admin-password": None, "flask-secret-key": None},
}


def secret_manifests(settings: Settings, key_files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """All Secrets, for `kubectl create -f -`, which overwrites none that is there.

    Args:
        settings: The cluster's.
        key_files: Of each name in `S3_SECRETS`, a file with lines ``AWS_ACCESS_KEY_ID=...``.

    Raises:
        UserError: If a key file cannot be read or lacks a line.
    """
    values = {
        name: {key: value or secrets.token_hex(24) for key, value in keys.items()}
        for name, keys in SECRETS.items()
    }
    values |= {name: _key_file(key_files[name]) for name in S3_SECRETS}
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": settings.namespace},
            "stringData": data,
        }
        for name, data in values.items()
    ]


def _key_file(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    values = {name.strip(): value.strip() for name, value in pairs}
    missing = [key for key in S3_KEYS if not values.get(key)]
    if missing:
        raise UserError(f"{file}: no line {missing[0]}=...")
    return {key: values[key] for key in (*S3_KEYS, S3_ENDPOINT) if values.get(key)}
