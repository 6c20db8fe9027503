"""What MLflow is told of a search."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adu.training.config import RunConfig
from pipeline.executors.outcome_file import TestOutcome
from pipeline.jobs.plan import Plan
from pipeline.names import forget_name
from pipeline.results.output import Output
from pipeline.studies.records import StudyRecord
from pipeline.studies.samplers import sampler_config
from pipeline.tracking.recorder import Background, TrackedStudy
from pipeline.tracking.tracker import Tracker, default_uri, model_name, short_name

SYNTHETIC_NOTE = "synthetic demo data"


class TrackedSearch:
    """A search as MLflow has it: a run a study, below it one for each of its runs.

    Args:
        plan: What is searched.
        output: Where it is kept.
    """

    def __init__(self, plan: Plan, output: Output) -> None:
        self._plan = plan
        self._output = output
        self._background = Background()
        self._tracker: Tracker | None = None
        self._studies: dict[str, TrackedStudy] = {}
        self._tags: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """MLflow's server or database."""
        # Only an output on this machine can do without.
        return self._plan.config.tracking.uri or default_uri(Path(self._output.url))

    def begin(self, job_id: str) -> None:
        """Opens MLflow in the background: a new SQLite file takes it seconds.

        Args:
            job_id: Ray's name of the job.
        """
        self._tags = {"ray_job_id": job_id, **code_version()}
        self.then(self._open)

    def study(self, name: str) -> TrackedStudy:
        """A study's runs."""
        if name not in self._studies:
            tags, params = self._study_tags(name), self._shared_params()
            study_id = f"{self._output.search_id}/{name}"
            self._studies[name] = TrackedStudy(
                self._require_tracker,
                self._background,
                lambda tracker: tracker.start_study(
                    study_id, f"forget {name}", tags, params, self._plan.manifest
                ),
                tags,
            )
        return self._studies[name]

    def finals(
        self, record: StudyRecord, finals: Sequence[tuple[str, RunConfig, TestOutcome | None]]
    ) -> None:
        """Logs final runs, the pictures made of them, and the best model.

        Args:
            record: The study.
            finals: Stage, configuration and outcome of each.
        """
        name, manifest = forget_name(record.forget), self._plan.manifest
        tracked = self.study(name)
        shown: dict[str, TestOutcome] = {}
        for stage, config, outcome in finals:
            if outcome is not None:
                tracked.final(stage, config, outcome, manifest)
                # Of several seeds the first stands for its stage.
                shown.setdefault(stage, outcome)
        if "best" in shown and self._plan.config.tracking.register_models:
            model = model_name(self._plan.name, record.forget)
            backbone = self._plan.context.backbone.name
            tracked.model(model, shown["best"], manifest.classes, backbone)
        if {"best", "zero_shot"} <= shown.keys():
            pictures = self._output.study_pictures(name)
            before, after = shown["zero_shot"], shown["best"]
            tracked.pictures(lambda: self._draw(record, before, after), pictures)

    def close(self, record: StudyRecord, status: str) -> None:
        """Closes a study's run."""
        metrics: dict[str, float] = {"n_trials": len(record.trials)}
        if record.best is not None and record.best.mean is not None:
            metrics |= {f"best/val_{k}": v for k, v in record.best.mean.as_dict().items()}
        for stage, final in record.finals.items():
            if final.test is not None:
                metrics |= {f"{stage}/test_{k}": v for k, v in final.test.as_dict().items()}
        self.study(forget_name(record.forget)).end(status, metrics)

    def then(self, function: Callable[[], Any]) -> None:
        """Has a function called once MLflow has been told all so far."""
        self._background.call(function)

    def lag_s(self) -> float:
        """Age of the oldest thing that MLflow has not been told yet, in seconds."""
        return self._background.lag_s

    def finish(self) -> list[str]:
        """Waits for MLflow; returns what it could not write: the search's own results stand."""
        try:
            self._background.flush()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            return [f"MLflow: some of the runs could not be written: {reason}"]
        return []

    def _open(self) -> None:
        uri = self._plan.config.tracking.uri
        self._tracker = Tracker(uri, self._output.work, self._plan.manifest.name)

    def _require_tracker(self) -> Tracker:
        assert self._tracker is not None
        return self._tracker

    def _draw(
        self, record: StudyRecord, before: TestOutcome, after: TestOutcome
    ) -> dict[str, bytes]:
        # Takes seconds to import, which the start of a search need not wait for.
        from pipeline.results.pictures import study_pictures

        manifest = self._plan.manifest
        note = SYNTHETIC_NOTE if manifest.synthetic else ""
        return study_pictures(record, before, after, manifest.classes, manifest.domains, note)

    def _study_tags(self, name: str) -> dict[str, str]:
        return {
            **self._tags,
            "forget": name,
            "search": self._output.search_id,
            "backbone": self._plan.config.context.backbone.name,
            "method": self._plan.config.method.name,
            "manifest_digest": self._plan.manifest.digest,
            "synthetic": str(self._plan.manifest.synthetic).lower(),
        }

    def _shared_params(self) -> dict[str, Any]:
        config = self._plan.config
        return {
            "epochs": config.train.epochs,
            "batch_size": config.train.batch_size,
            "shots": config.context.data.shots,
            "val_shots": config.context.data.val_shots,
            "trials": config.search.trials,
            "sampler": sampler_config(config.search.sampler).name,
            "searched": ", ".join(short_name(path) for path in config.space),
            "objective": config.search.objective,
        }


def code_version() -> dict[str, str]:
    """The version of this code as tags of MLflow's, which its UI shows.

    An image has no Git: the commit that it was built from stands in `ADU_COMMIT`.
    """
    root = Path(__file__).parents[2]
    tags = {"adu_search_version": version("adu-search")}
    if built := os.environ.get("ADU_COMMIT"):
        return {**tags, "mlflow.source.git.commit": built}
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            tags["mlflow.source.git.commit"] = commit.stdout.strip()
    return tags
