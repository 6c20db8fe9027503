"""Keeps MLflow's picture of a search: a run a study, below it a run a trial and a final run.

Stateless: a run is found by its tags or created, so a search that is resumed goes on in the runs
that it has begun. Only the driver writes, in batches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

# MLflow asks its own server of usage statistics, and waits for dead servers for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.evaluation.evaluate import TestResult
from adu.storage.s3 import mlflow_variables
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome
from pipeline.names import mlflow_name
from pipeline.studies.records import STAGES, run_label

PARENT_TAG = "mlflow.parentRunId"
TRIAL_TAG = "adu.trial_id"
STUDY_TAG = "adu.study"
STAGE_TAG = "adu.stage"

# MLflow's UI shows it as the description of an experiment, a run or a model.
NOTE_TAG = "mlflow.note.content"

EXPERIMENT_TAGS = {
    # So that the UI opens it as one about training, not about prompts.
    "mlflow.experimentKind": "custom_model_development",
    NOTE_TAG: (
        "Approximate domain unlearning: a run a study, and below it its trials and final runs. "
        "To compare results, filter by `tags.stage IN ('zero_shot', 'default', 'best')`; "
        "for the trials of a forget set, by `tags.stage = 'trial' AND tags.forget = '...'`."
    ),
}

CHECK_TIMEOUT_S = 5

SQLITE = "sqlite:///"


class Tracker:
    """Writes one search into one experiment.

    Args:
        uri: MLflow server or database; None for a SQLite file beside the output.
        output: The search's output folder.
        experiment: Name of the experiment: the data set's.
    """

    def __init__(self, uri: str | None, output: Path, experiment: str) -> None:
        self.uri = uri or default_uri(output)
        with _quiet():
            self._client = open_client(self.uri)
            self._experiment = self._find_experiment(experiment)
        # Who runs which command: columns of the UI.
        self._origin = resolve_tags()

    @staticmethod
    def check(uri: str | None) -> None:
        """Sees whether a server answers, and answers us, before anything else is done.

        Raises:
            UserError: If none does within a few seconds, or it does not know us.
        """
        if uri is None or urlparse(uri).scheme not in ("http", "https"):
            return
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            raise UserError(f"tracking.uri {uri}: answers {error.code}, not as MLflow") from error
        except (OSError, ValueError) as error:
            raise UserError(f"tracking.uri {uri}: no MLflow server answers there") from error
        try:
            MlflowClient(uri).search_experiments(max_results=1)
        except MlflowException as error:
            user = os.environ.get("MLFLOW_TRACKING_USERNAME")
            raise UserError(
                f"tracking.uri {uri}: does not let {f'user {user!r}' if user else 'nobody'} in "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                f"MLFLOW_TRACKING_TOKEN): {' '.join(str(error).split())[:120]}"
            ) from error

    def start_study(
        self,
        study: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        manifest: Manifest | None = None,
    ) -> str:
        """Finds or creates the parent run of a study, or of whatever else has runs below it.

        Args:
            study: Unique name of the study over all searches, such as search and forget set.
            name: The run's name.
            tags: Put on the run.
            params: What all its trials share.
            manifest: The images that they train on.

        Returns:
            The run's id.
        """
        own = {STUDY_TAG: study, "stage": "study"}
        run_id = self._find_or_create(name, {**own, **tags}, STUDY_TAG, study)
        self._log_params(run_id, params)
        if manifest is not None:
            self._log_dataset(run_id, manifest, "train")
        return run_id

    def log_trial(
        self, study_run: str, trial_id: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        """Finds or creates the run of a trial; returns its id."""
        name = _run_name(tags, f"trial {tags.get('trial_number', trial_id)}")
        own = {PARENT_TAG: study_run, TRIAL_TAG: trial_id, "stage": "trial"}
        run_id = self._find_or_create(name, {**tags, **own}, TRIAL_TAG, trial_id, study_run)
        self._log_params(run_id, {short_name(path): value for path, value in params.items()})
        return run_id

    def log_epoch(self, trial_run: str, report: EpochReport, *, once_more: bool = False) -> None:
        """Adds an epoch to a run's curves.

        Args:
            trial_run: The run.
            report: The epoch.
            once_more: Whether the run may have it already, since the search was resumed.
        """
        if once_more:
            known = self._client.get_metric_history(trial_run, "val/h")
            if report.epoch in {point.step for point in known}:
                return
        values = {f"loss/{name}": value for name, value in report.losses.items()}
        values |= {f"val/{name}": value for name, value in report.val.as_dict().items()}
        values |= {"lr": report.lr, "epoch_s": report.train_s + report.val_s}
        self._log_metrics(trial_run, values, step=report.epoch)

    def log_scores(self, trial_run: str, scores: Mapping[int, Mapping[str, float]]) -> None:
        """Adds those validation scores to a run's curves that it lacks.

        Args:
            trial_run: The run.
            scores: Mem, For and H by epoch.
        """
        known = {point.step for point in self._client.get_metric_history(trial_run, "val/h")}
        for epoch in sorted(scores.keys() - known):
            values = {f"val/{name}": value for name, value in scores[epoch].items()}
            self._log_metrics(trial_run, values, step=epoch)

    def closed_trials(self, study_run: str) -> dict[str, tuple[str, int]]:
        """Status and number of epochs of a study's trials that are over, by their ids."""
        found: dict[str, tuple[str, int]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{PARENT_TAG}` = '{study_run}' AND metrics.epochs_done >= 0",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                if TRIAL_TAG in run.data.tags:
                    epochs = int(run.data.metrics["epochs_done"])
                    found[run.data.tags[TRIAL_TAG]] = (run.info.status, epochs)
            token = page.token
            if not token:
                return found

    def end_trial(self, trial_run: str, status: str, metrics: Mapping[str, float]) -> None:
        """Closes a trial's run as ``FINISHED``, ``KILLED`` (stopped early) or ``FAILED``."""
        self._log_metrics(trial_run, metrics, step=0)
        self._client.set_terminated(trial_run, status)

    def log_final(
        self,
        study_run: str,
        stage: str,
        run: RunConfig,
        outcome: TestOutcome,
        manifest: Manifest,
        tags: Mapping[str, str],
    ) -> str:
        """Finds or creates the run of a final run and logs all that came of it; returns its id."""
        seed = run.train.seed
        key = f"{study_run}/{stage}/{tags.get('forget', '')}/{seed}"
        label = run_label(stage, run)
        label = label if stage == "zero_shot" else f"{label}, seed {seed}"
        name = _run_name(tags, label)
        own = {PARENT_TAG: study_run, STAGE_TAG: key, "stage": stage, "method": run.method.name}
        run_id = self._find_or_create(
            name, {**tags, **own}, STAGE_TAG, key, study_run, outcome.began_s
        )
        config = run.model_dump(mode="json", by_alias=True)
        shared = {**config["method"], **config["train"]}
        del shared["name"]
        self._log_params(run_id, {"method": run.method.name, **shared})
        metrics = metrics_of_test(outcome.test)
        metrics["test/domain_accuracy"] = outcome.domain_accuracy
        self._log_metrics(run_id, metrics, step=0)
        self._log_dataset(run_id, manifest, "test")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            if outcome.checkpoint is not None:
                (Path(folder) / "checkpoint.safetensors").write_bytes(outcome.checkpoint)
            self._client.log_artifacts(run_id, folder)
        self._client.set_terminated(run_id, "FINISHED", _ms(outcome.ended_s))
        return run_id

    def log_evaluation(
        self,
        name: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        figures: Mapping[str, Any],
        manifest: Manifest,
    ) -> str:
        """Logs an evaluation as a run of its own; returns its id."""
        run = self._client.create_run(
            self._experiment, run_name=name, tags={**self._origin, **tags}
        )
        run_id = str(run.info.run_id)
        self._log_metrics(run_id, metrics, step=0)
        self._log_dataset(run_id, manifest, "test")
        self._client.log_dict(run_id, dict(figures), "figures.json")
        self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def log_pictures(self, study_run: str, pictures: Mapping[str, bytes]) -> None:
        """Logs PNG files, by name, below ``pictures/``."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in pictures.items():
                (Path(folder) / name).write_bytes(data)
            self._client.log_artifacts(study_run, folder, "pictures")

    def end_study(self, study_run: str, status: str, metrics: Mapping[str, float]) -> None:
        """Closes a study's run."""
        self._log_metrics(study_run, metrics, step=0)
        self._client.set_terminated(study_run, status)

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(
                name, artifact_location=artifacts_of(self.uri, name), tags=EXPERIMENT_TAGS
            )
        except MlflowException:
            # Another search has just created it.
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _find_or_create(
        self,
        name: str,
        tags: Mapping[str, str],
        key: str,
        value: str,
        parent: str | None = None,
        began_s: float | None = None,
    ) -> str:
        wanted = f"tags.`{key}` = '{value}'"
        if parent is not None:
            wanted += f" AND tags.`{PARENT_TAG}` = '{parent}'"
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run = self._client.create_run(
            self._experiment, start_time=_ms(began_s), run_name=name, tags={**self._origin, **tags}
        )
        return str(run.info.run_id)

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        # Parameters cannot be changed: on resume only those that are new are logged.
        known = self._client.get_run(run_id).data.params
        new = [
            Param(name, str(value))
            for name, value in params.items()
            if value is not None and name not in known
        ]
        if new:
            self._client.log_batch(run_id, params=new)

    def _log_metrics(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)

    def _log_dataset(self, run_id: str, manifest: Manifest, split: str) -> None:
        dataset = Dataset(
            name=manifest.name,
            digest=manifest.digest[:32],
            source_type="manifest",
            source=f'{{"uri": "{manifest.url}"}}',
        )
        context = InputTag("mlflow.data.context", split)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        self._client.log_batch(run_id, tags=[RunTag("manifest_digest", manifest.digest)])


@dataclass(frozen=True)
class LoggedRun:
    """A run as MLflow has it.

    Attributes:
        run_id: Its id.
        status: MLflow's word for it.
        tags: Its tags.
        params: Its parameters.
        metrics: The last value of each metric.
        start_s: When it began, in seconds since 1970.
        end_s: When it ended; when it began if it has not.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start_s: float
    end_s: float


class SearchRuns:
    """All that MLflow has of one search.

    Args:
        uri: MLflow server or database.
        search: The search's unique name.
    """

    def __init__(self, uri: str, search: str) -> None:
        file = sqlite_file(uri)
        if file is not None and not file.exists():
            raise UserError(f"tracking.uri {uri}: there is no such file")
        with _quiet():
            self._client = open_client(uri)
            experiments = self._client.search_experiments()
        self.experiment = ""
        self.all: list[LoggedRun] = []
        for experiment in experiments:
            found = self._runs(experiment.experiment_id, f"tags.search = '{search}'")
            if found:
                self.experiment, self.all = experiment.name, found
        self.studies = [run for run in self.all if run.tags.get("stage") == "study"]

    def trials(self, study_run: str) -> list[LoggedRun]:
        """The runs of a study's trials."""
        return [run for run in self._below(study_run) if run.tags["stage"] == "trial"]

    def finals(self, study_run: str) -> list[LoggedRun]:
        """A study's final runs, by seed."""
        found = [run for run in self._below(study_run) if run.tags["stage"] in STAGES]
        return sorted(found, key=lambda run: int(run.params["seed"]))

    def pictures(self, study_run: str, folder: Path) -> dict[str, bytes]:
        """A study's pictures by file name.

        Args:
            study_run: The study's run.
            folder: Where they may be put for the moment.
        """
        files = self._client.list_artifacts(study_run, "pictures")
        return {
            Path(file.path).name: Path(
                self._client.download_artifacts(study_run, file.path, str(folder))
            ).read_bytes()
            for file in files
        }

    def log_report(self, page: str) -> None:
        """Logs a page with every study."""
        for study in self.studies:
            self._client.log_text(study.run_id, page, "report.html")

    def _below(self, study_run: str) -> list[LoggedRun]:
        return [run for run in self.all if run.tags.get(PARENT_TAG) == study_run]

    def _runs(self, experiment: str, wanted: str) -> list[LoggedRun]:
        found: list[LoggedRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], wanted, max_results=1000, order_by=["start_time"], page_token=token
            )
            found += [_logged_run(run) for run in page]
            token = page.token
            if not token:
                return found


def _logged_run(run: Any) -> LoggedRun:
    start_s = run.info.start_time / 1000
    return LoggedRun(
        run.info.run_id,
        run.info.status,
        dict(run.data.tags),
        dict(run.data.params),
        dict(run.data.metrics),
        start_s,
        (run.info.end_time or run.info.start_time) / 1000,
    )


def open_client(uri: str) -> MlflowClient:
    """MLflow's client, which reaches artifacts in a bucket as `adu.storage` reaches images."""
    for name, value in mlflow_variables().items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def default_uri(output: Path) -> str:
    """The embedded default: a SQLite file shared by the searches of one results folder."""
    return f"{SQLITE}{output.absolute().parent / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a tracking store; None if it is not in SQLite."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def artifacts_of(uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go; None leaves it to the server.

    Beside a SQLite file. MLflow would put them into ``mlruns`` of the folder that the command
    stands in, which for a submitted job is one that Ray removes.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "artifacts" / experiment).as_uri()


def ui_command(uri: str) -> str:
    """What a person types to see a tracking store in the browser."""
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    if sqlite_file(uri) == Path("results").absolute() / "mlflow.db":
        return "make ui"
    return f"mlflow ui --backend-store-uri {uri}"


def model_name(search: str, forget: Sequence[str]) -> str:
    """The name in the registry of the best model of a study."""
    return f"{mlflow_name(search)}-without-{_model_part(forget)}"


def _model_part(forget: Sequence[str]) -> str:
    """A forget set in a model's name: the registry takes a plus, if not in a path."""
    return "+".join(mlflow_name(domain) for domain in forget)


def short_name(path: str) -> str:
    """A parameter's name in MLflow: ``gamma`` rather than ``method.gamma``."""
    return path.rsplit(".", 1)[-1]


def _ms(seconds: float | None) -> int | None:
    """A time as MLflow has it; None for now."""
    return None if seconds is None else int(1000 * seconds)


def metrics_of_test(result: TestResult) -> dict[str, float]:
    """A test result as MLflow's metrics."""
    metrics = {f"test/{name}": value for name, value in result.scores.as_dict().items()}
    for domain, value in result.scores.accuracy_by_domain.items():
        metrics[f"test/accuracy/{mlflow_name(domain)}"] = value
    return metrics


def _run_name(tags: Mapping[str, str], label: str) -> str:
    """Says the forget set too: MLflow's charts and comparisons show nothing but a run's name."""
    return f"{tags['forget']}: {label}" if "forget" in tags else label


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the dozens of lines of a database's creation from the terminal."""
    names = ("alembic", "mlflow")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
