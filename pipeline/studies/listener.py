"""Who wants to know what happens to runs: the live view, MLflow, a command's own log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adu.training.trainer import EpochReport
from pipeline.executors.run import Run
from pipeline.studies.records import TrialRecord


class RunListener:
    """Who wants to know what happens to runs. Called in the driver, and not to be waited for."""

    def run_restored(self, study: str, record: TrialRecord, scores: Mapping[int, Any]) -> None:
        """A trial was over before the job was resumed; with its validation scores by epoch."""

    def run_started(self, run: Run) -> None:
        """A run has an executor."""

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """A run has finished an epoch; no news if an earlier session of the job was told."""

    def run_attacked(self, run: Run, done: int, total: int) -> None:
        """A run that attacks a model is through with so many attacks of so many."""

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""

    def run_suspended(self, run: Run) -> None:
        """A run has lost its executor, or the job ends; it will go on."""

    def news(self, text: str) -> None:
        """Executors come or go."""
