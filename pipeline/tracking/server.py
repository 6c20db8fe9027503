"""Where MLflow is: a server or database that a person names, tried before anything starts.

Nothing here changes MLflow's own settings: what a client needs to know it is told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# MLflow asks its own server of usage statistics, and waits for dead servers for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# It prints where a run is to be seen, with the password in the server's URI.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import Field

from adu.config import StrictModel
from adu.errors import UserError
from adu.storage.s3 import mlflow_variables
from pipeline.names import file_name, mlflow_name

CHECK_TIMEOUT_S = 10.0

SQLITE = "sqlite:///"
SQLITE_MAGIC = b"SQLite format 3\0"

# What they ask for contradicts what a command writes, so that they would be in the way.
FORBIDDEN = {
    "MLFLOW_RUN_ID": "runs have ids of their own",
    "MLFLOW_EXPERIMENT_ID": "runs go into the experiment of the data set",
    "MLFLOW_EXPERIMENT_NAME": "runs go into the experiment of the data set",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "what was written is known only if it is written at once",
}

# MLflow's UI shows it as the description of an experiment, a run or a model.
NOTE_TAG = "mlflow.note.content"

EXPERIMENT_TAGS = {
    # So that the UI opens it as one about training, not about prompts.
    "mlflow.experimentKind": "custom_model_development",
    NOTE_TAG: (
        "Approximate domain unlearning: a run a study, below it one a configuration, and below "
        "that one a seed. To compare results, filter by `tags.stage != 'trial' AND "
        "tags.level = 'configuration'`; for the trials of a forget set, by `tags.stage = 'trial' "
        "AND tags.forget = '...'`."
    ),
}

T = TypeVar("T")


class TrackingConfig(StrictModel):
    """Where runs are tracked."""

    uri: str | None = Field(
        None,
        description="MLflow server or database; unset: MLFLOW_TRACKING_URI, else mlflow.db beside "
        "the output",
    )
    registry_uri: str | None = Field(
        None, description="MLflow's model registry; unset: MLFLOW_REGISTRY_URI, else where runs are"
    )
    register_models: bool = Field(
        True, description="whether a search registers the best model of each study"
    )
    end_s: float = Field(
        120, gt=0, description="longest wait for MLflow at the end; track.py writes the rest"
    )

    @property
    def named_uri(self) -> str | None:
        """The URI that a person has named, here or in the environment."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None


@dataclass(frozen=True)
class Server:
    """An MLflow server or database.

    Attributes:
        uri: Of the runs; may hold a password.
        registry_uri: Of the models; None for the same.
    """

    uri: str
    registry_uri: str | None = None

    @property
    def shown(self) -> str:
        """The URI as anybody may see it."""
        return without_secrets(self.uri)

    def client(self) -> MlflowClient:
        """MLflow's client, which reaches artifacts in a bucket as `adu.storage` reaches images."""
        for name, value in mlflow_variables().items():
            os.environ.setdefault(name, value)
        return MlflowClient(self.uri, self.registry_uri or self.uri)

    def ui_command(self) -> str:
        """What a person types to see it in the browser."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {self.shown}"
        if sqlite_file(self.uri) == Path("results").absolute() / "mlflow.db":
            return "make ui"
        return f"mlflow ui --backend-store-uri {self.shown}"


def server_of(config: TrackingConfig, output: Path) -> Server:
    """The server that is asked for; unset, a SQLite file shared by one folder's outputs."""
    registry = config.registry_uri or os.environ.get("MLFLOW_REGISTRY_URI") or None
    return Server(config.named_uri or f"{SQLITE}{output.absolute().parent / 'mlflow.db'}", registry)


def check(config: TrackingConfig, data_set: str) -> None:
    """Tries a server that was named, for reading and writing, before anything else is done.

    Args:
        config: Names it; MLflow's own file beside the output is not tried.
        data_set: Whose experiment runs go into; it is created if it is not there.

    Raises:
        UserError: If it cannot be used within `CHECK_TIMEOUT_S`, or a variable is in the way.
    """
    for variable, reason in FORBIDDEN.items():
        if os.environ.get(variable):
            raise UserError(f"{variable}: must be unset ({reason})")
    if config.named_uri is not None:
        server = server_of(config, Path())
        _tried("tracking.uri", server.uri, lambda: _try_runs(server, data_set))
    registry = config.registry_uri or os.environ.get("MLFLOW_REGISTRY_URI")
    if registry and config.register_models:
        _tried("tracking.registry_uri", registry, lambda: _try_registry(registry))


def find_experiment(client: MlflowClient, uri: str, data_set: str) -> str:
    """Finds or creates the experiment of a data set; returns its id.

    Args:
        client: The server's.
        uri: The server's.
        data_set: Its true name, which the experiment has as a tag.

    Raises:
        UserError: If it was deleted there.
        MlflowException: If the server does not do it.
    """
    name = mlflow_name(data_set)
    found = client.get_experiment_by_name(name)
    if found is None:
        tags = {**EXPERIMENT_TAGS, "data_set": data_set}
        try:
            return client.create_experiment(name, artifacts_of(uri, name), tags)
        except MlflowException:
            # Another search has just created it.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(f"experiment '{name}': was deleted there (restore it, or purge it)")
    return str(found.experiment_id)


def sqlite_file(uri: str) -> Path | None:
    """The file of a tracking store; None if it is not in SQLite."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def artifacts_of(uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go; None leaves it to the server.

    Beside a SQLite file. MLflow would put them into ``mlruns`` of the folder that the command
    stands in, which for a submitted job is one that Ray removes.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "artifacts" / file_name(experiment)).as_uri()


def without_secrets(text: str) -> str:
    """A URI, or a text that holds some, without passwords and tokens.

    Example:
        >>> without_secrets("postgresql://adu:secret@host/mlflow")
        'postgresql://adu:***@host/mlflow'
    """
    text = re.sub(r"(\w://[^:/@\s]*):[^\s]*@", r"\1:***@", text)
    text = re.sub(r"(https?://)[^:/@\s]+@", r"\1***@", text)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*=)[^&\s]*", r"\1***", text
    )


def told(error: BaseException) -> str:
    """Why something failed, in a line that anybody may see."""
    return without_secrets(" ".join(str(error).split()) or type(error).__name__)[:200]


@contextlib.contextmanager
def quiet_mlflow(level: int = logging.WARNING) -> Iterator[None]:
    """Keeps the dozens of lines of a database's creation from the terminal."""
    names = ("alembic", "mlflow")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level_before in before.items():
            logging.getLogger(name).setLevel(level_before)


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """Calls a function, and waits for it no longer than that.

    Raises:
        TimeoutError: If it has not come back; it goes on in a thread that keeps nobody.
        Exception: What it raises.
    """
    answer: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=work, daemon=True, name="mlflow-check")
    thread.start()
    thread.join(timeout_s)
    if error:
        raise error[0]
    if not answer:
        raise TimeoutError
    return answer[0]


def _tried(field: str, uri: str, attempt: Callable[[], bool]) -> None:
    shown = f"{field} {without_secrets(uri)}"
    try:
        # Of what it tries again it tells a line each time.
        with quiet_mlflow(logging.CRITICAL):
            within(CHECK_TIMEOUT_S, attempt)
    except TimeoutError as error:
        raise UserError(f"{shown}: does not answer within {CHECK_TIMEOUT_S:.0f} s") from error
    except Exception as error:
        # Whatever a driver, a plug-in or MLflow comes to with a URI that it does not like.
        raise UserError(f"{shown}: {told(error)}") from error


def _try_runs(server: Server, data_set: str) -> bool:
    if server.uri.startswith(("http://", "https://")):
        _ask_health(server.uri)
    file = sqlite_file(server.uri)
    if file is not None and _is_new(file):
        # MLflow takes seconds to fill it: in the background, while the executors start.
        return True
    client = server.client()
    try:
        found = find_experiment(client, server.uri, data_set)
        client.set_experiment_tag(found, NOTE_TAG, EXPERIMENT_TAGS[NOTE_TAG])
    except MlflowException as error:
        raise _refusal(error) from error
    return True


def _try_registry(uri: str) -> bool:
    if uri.startswith(("http://", "https://")):
        _ask_health(uri)
    Server(uri).client().search_registered_models(max_results=1)
    return True


def _refusal(error: MlflowException) -> Exception:
    if error.get_http_status_code() not in (401, 403):
        return error
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return UserError(
        f"does not let {f'user {user!r}' if user else 'nobody'} in (MLFLOW_TRACKING_USERNAME and "
        f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN): {told(error)}"
    )


def _ask_health(uri: str) -> None:
    # Name and password in a URL are the client's to use.
    plain = re.sub(r"//[^/]*@", "//", uri).rstrip("/")
    try:
        urllib.request.urlopen(f"{plain}/health", timeout=CHECK_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise UserError(f"answers {error.code}, not as MLflow") from error
    except TimeoutError:
        raise
    except (OSError, ValueError) as error:
        raise UserError("no MLflow server answers there") from error


def _is_new(file: Path) -> bool:
    """Whether a SQLite file is still to be filled.

    Raises:
        UserError: If it is no database, or cannot be written.
    """
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent}")
    is_new = not file.exists() or file.stat().st_size == 0
    if not os.access(file.parent if is_new else file, os.W_OK):
        raise UserError("cannot be written")
    if is_new:
        return True
    with file.open("rb") as stream:
        if stream.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise UserError("is no SQLite database")
    with contextlib.closing(sqlite3.connect(file, timeout=CHECK_TIMEOUT_S)) as database:
        tables: list[Any] = database.execute("SELECT name FROM sqlite_master").fetchall()
    return not tables
