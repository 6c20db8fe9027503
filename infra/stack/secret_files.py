"""Random passwords and keys, a file each, and the environment that hands them to clients.

They are made once, readable by their owner alone, and never printed: processes get them in their
environment, people through `env.sh`, which says in which file each lies.
"""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from infra.stack.settings import REGION, Settings

NAMES = (
    "s3-admin",
    "s3-search",
    "s3-mlflow",
    "postgres-admin",
    "postgres-search",
    "postgres-mlflow",
    "mlflow-admin",
    "mlflow-search",
    "mlflow-session",
    "ray-token",
)


class Secrets:
    """The secrets of a stack.

    Args:
        folder: Where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Makes those that are not there yet."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for name in NAMES:
            if not self.path(name).exists():
                self.write(name, secrets.token_hex(24))

    def path(self, name: str) -> Path:
        """The file of a secret."""
        return self.folder / name

    def read(self, name: str) -> str:
        """A secret."""
        return self.path(name).read_text()

    def write(self, name: str, text: str) -> Path:
        """Writes a file that its owner alone can read: a secret, or a configuration with some."""
        file = self.path(name)
        # Whole or not at all: on a full disk, an empty file would be a password.
        unfinished = file.with_name(f".{file.name}")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
        unfinished.replace(file)
        return file


@dataclass(frozen=True)
class Variable:
    """An environment variable: its value, or the name of the secret that is its value."""

    name: str
    value: str = ""
    secret: str = ""


def storage_url(settings: Settings) -> str:
    """Optuna's storage, without the password: libpq takes that from PGPASSWORD."""
    return f"postgresql+psycopg://search@127.0.0.1:{settings.ports.postgres}/studies"


def s3_variables(settings: Settings, user: str) -> list[Variable]:
    """What reaches the object store as one of its users."""
    return [
        Variable("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{settings.ports.s3}"),
        Variable("AWS_REGION", REGION),
        Variable("AWS_ACCESS_KEY_ID", user),
        Variable("AWS_SECRET_ACCESS_KEY", secret=f"s3-{user}"),
    ]


def search_variables(settings: Settings) -> list[Variable]:
    """What a search needs where its driver runs."""
    return [
        *s3_variables(settings, "search"),
        Variable("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{settings.ports.mlflow}"),
        Variable("MLFLOW_TRACKING_USERNAME", "search"),
        Variable("MLFLOW_TRACKING_PASSWORD", secret="mlflow-search"),
        Variable("OPTUNA_STORAGE", storage_url(settings)),
        Variable("PGPASSWORD", secret="postgres-search"),
    ]


def ray_variables(secret_files: Secrets) -> list[Variable]:
    """What a process of Ray needs, or one that talks to it."""
    return [
        Variable("RAY_AUTH_MODE", "token"),
        Variable("RAY_AUTH_TOKEN_PATH", str(secret_files.path("ray-token"))),
        Variable("RAY_USAGE_STATS_ENABLED", "0"),
    ]


def with_values(variables: list[Variable], secret_files: Secrets) -> dict[str, str]:
    """Variables as a process gets them."""
    return {v.name: secret_files.read(v.secret) if v.secret else v.value for v in variables}


def shell_script(settings: Settings, secret_files: Secrets) -> str:
    """A file to source before one submits jobs; it names the secrets' files, not the secrets."""
    dashboard = f"http://127.0.0.1:{settings.ports.dashboard}"
    lines = [
        "# The stack's addresses and, by reference, what opens them. Source it:  . env.sh",
        "unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL RAY_ADDRESS RAY_AUTH_TOKEN",
    ]
    variables = [
        *search_variables(settings),
        *ray_variables(secret_files),
        Variable("RAY_API_SERVER_ADDRESS", dashboard),
    ]
    for variable in variables:
        file = shlex.quote(str(secret_files.path(variable.secret)))
        value = f'"$(cat {file})"' if variable.secret else shlex.quote(variable.value)
        lines.append(f"export {variable.name}={value}")
    return "\n".join(lines) + "\n"
