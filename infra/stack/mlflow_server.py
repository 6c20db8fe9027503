"""The MLflow server: runs in PostgreSQL, artifacts through it to the object store, users."""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request
from typing import Any, ClassVar

from infra.stack.secret_files import s3_variables, with_values
from infra.stack.server import CHECK_TIMEOUT_S, Server
from infra.stack.settings import MLFLOW_BUCKET

API = "api/2.0/mlflow"


class MLflow(Server):
    """Asks everybody for a name and a password."""

    name = "mlflow"
    needs: ClassVar[tuple[str, ...]] = ("s3", "postgres")

    @property
    def address(self) -> str:
        """UI and REST interface."""
        return f"http://127.0.0.1:{self.settings.ports.mlflow}"

    @property
    def ports(self) -> dict[str, int]:
        """One for clients."""
        return {"--mlflow-port": self.settings.ports.mlflow}

    def prepare(self) -> None:
        """Writes the configuration of its users, which holds no password."""
        lines = [
            "[mlflow]",
            # Everybody may see everything; who creates something manages it.
            "default_permission = READ",
            f"database_uri = {self._database}",
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
            # A password is slow to check on purpose; once a minute will do.
            "auth_cache_ttl_seconds = 60",
        ]
        self.secrets.write("mlflow-auth.ini", "\n".join(lines) + "\n")

    def command(self) -> list[str]:
        """The server of MLflow's own command line."""
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host=127.0.0.1",
            f"--port={self.settings.ports.mlflow}",
            "--workers=1",
            f"--backend-store-uri={self._database}",
            "--serve-artifacts",
            f"--artifacts-destination=s3://{MLFLOW_BUCKET}",
            "--app-name=basic-auth",
        ]

    def environment(self) -> dict[str, str]:
        """Its password for PostgreSQL, its key for S3, and those of its first user."""
        return {
            **with_values(s3_variables(self.settings, "mlflow"), self.secrets),
            "PGPASSWORD": self.secrets.read("postgres-mlflow"),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.secrets.path("mlflow-auth.ini")),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets.read("mlflow-admin"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets.read("mlflow-session"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Evaluations of language models in the background, which nobody asks for here.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def check(self) -> str:
        """Searches experiments, as a user: that takes its database as well."""
        found = self._ask("experiments/search", {"max_results": 1000})
        return f"{len(found.get('experiments', []))} experiments"

    def set_up(self) -> None:
        """Creates the user that searches log as."""
        user = {"username": "search", "password": self.secrets.read("mlflow-search")}
        try:
            self._ask("users/create", user)
        except urllib.error.HTTPError as error:
            if json.load(error)["error_code"] != "RESOURCE_ALREADY_EXISTS":
                raise

    @property
    def _database(self) -> str:
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.settings.ports.postgres}/mlflow"

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        login = f"admin:{self.secrets.read('mlflow-admin')}".encode()
        request = urllib.request.Request(
            f"{self.address}/{API}/{path}",
            json.dumps(body).encode(),
            {
                "Authorization": f"Basic {base64.b64encode(login).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=CHECK_TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
        return answer
