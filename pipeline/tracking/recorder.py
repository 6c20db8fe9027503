"""Writes what happens in a study to MLflow, in a thread of its own: no trial waits for a server."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from adu import storage
from adu.data.manifest import Manifest
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.run import TRIAL, Run
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.tracking.tracker import Tracker

# TrialRecord's states in MLflow's words.
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Background:
    """Calls functions one after another in a thread.

    The first exception is kept and raised by the next `flush`; the calls after it are still made.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[float, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        # When the call at work was asked for.
        self._asked_s: float | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="background")
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> None:
        """Has a function called, some time after those before it."""
        self._calls.put((time.monotonic(), function))

    @property
    def lag_s(self) -> float:
        """How long ago the call at work was asked for; 0 if there is none."""
        asked_s = self._asked_s
        return 0.0 if asked_s is None else time.monotonic() - asked_s

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until all calls so far have been made.

        Raises:
            Exception: The first that a call raised since the last flush.
        """
        done = threading.Event()
        self.call(done.set)
        done.wait(timeout_s)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Makes the calls that are left, then ends the thread."""
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            self._asked_s, call = asked
            try:
                call()
            except Exception as error:
                self._error = self._error or error
            self._asked_s = None


class TrackedStudy:
    """A study's listener that keeps MLflow's runs of its trials.

    Args:
        tracker: Gives the tracker; called in the background thread.
        background: The thread that talks to MLflow.
        start: Starts the study's parent run and gives its id; called in the background thread.
        tags: Put on every trial's run.
    """

    def __init__(
        self,
        tracker: Callable[[], Tracker],
        background: Background,
        start: Callable[[Tracker], str],
        tags: Mapping[str, str],
    ) -> None:
        self._tracker = tracker
        self._background = background
        self._tags = dict(tags)
        self._runs: dict[int, str] = {}
        self._study_run = ""
        # Status and epochs of the trials that MLflow knows to be over, when it is resumed.
        self._closed: dict[str, tuple[str, int]] | None = None

        def begin() -> None:
            self._study_run = start(tracker())

        background.call(begin)

    def call(self, function: Callable[[Tracker, str], Any]) -> None:
        """Has a function called with the tracker and the study's run."""
        self._background.call(lambda: function(self._tracker(), self._study_run))

    def trial_restored(self, trial: TrialRecord, scores: Mapping[int, Mapping[str, float]]) -> None:
        """Completes the run of a trial that had ended when everything was killed."""
        tags = {**self._tags, "trial_number": str(trial.number)}
        metrics = _closing_metrics(trial)

        def mend(tracker: Tracker, study_run: str) -> None:
            if self._closed is None:
                self._closed = tracker.closed_trials(study_run)
            number = str(trial.number)
            if self._closed.get(number) == (STATUS[trial.state], trial.epochs_done):
                return
            run = tracker.log_trial(study_run, number, trial.params, tags)
            tracker.log_scores(run, scores)
            tracker.end_trial(run, STATUS[trial.state], metrics)

        self.call(mend)

    def trial_started(self, number: int, params: Mapping[str, Any]) -> None:
        """Starts a trial's run, or finds it."""
        values, tags = dict(params), {**self._tags, "trial_number": str(number)}

        def start(tracker: Tracker, study_run: str) -> None:
            self._runs[number] = tracker.log_trial(study_run, str(number), values, tags)

        self.call(start)

    def epoch_ended(self, number: int, report: EpochReport, replayed: bool) -> None:
        """Adds an epoch to a trial's curves."""
        self.call(
            lambda tracker, _: tracker.log_epoch(self._runs[number], report, once_more=replayed)
        )

    def trial_ended(self, trial: TrialRecord) -> None:
        """Closes a trial's run."""
        metrics = _closing_metrics(trial)

        def end(tracker: Tracker, _: str) -> None:
            tracker.end_trial(self._runs.pop(trial.number), STATUS[trial.state], metrics)

        self.call(end)

    def trial_again(self, trial: TrialRecord) -> None:
        """Adds to a trial's run what its configuration came to with further seeds."""
        h = [scores.h for scores in trial.looks]
        metrics = {"seeds/n": float(len(h)), "seeds/h_mean": mean(h), "seeds/h_std": stdev(h)}
        tags = {**self._tags, "trial_number": str(trial.number)}

        def add(tracker: Tracker, study_run: str) -> None:
            run = tracker.log_trial(study_run, str(trial.number), trial.params, tags)
            tracker.end_trial(run, STATUS[trial.state], metrics)

        self.call(add)

    def trial_suspended(self, number: int) -> None:
        """Closes the run of a trial until the search is resumed."""

        def suspend(tracker: Tracker, _: str) -> None:
            # It may never have had an executor.
            if number in self._runs:
                tracker.end_trial(self._runs.pop(number), "KILLED", {})

        self.call(suspend)

    def final(self, stage: str, run: RunConfig, outcome: TestOutcome, manifest: Manifest) -> None:
        """Logs a final run."""

        def log(tracker: Tracker, study_run: str) -> None:
            tracker.log_final(study_run, stage, run, outcome, manifest, self._tags)

        self.call(log)

    def pictures(self, draw: Callable[[], Mapping[str, bytes]], folder: str) -> None:
        """Draws the study's pictures, logs them and keeps a copy in a folder."""

        def log(tracker: Tracker, study_run: str) -> None:
            pictures = draw()
            for name, data in pictures.items():
                storage.write_bytes(storage.join(folder, name), data)
            tracker.log_pictures(study_run, pictures)

        self.call(log)

    def model(self, name: str, outcome: TestOutcome, classes: Sequence[str], backbone: str) -> None:
        """Logs a trained model with the study's run and registers it."""

        def log(tracker: Tracker, study_run: str) -> None:
            # Brings pandas and more, which the start of a search need not wait for.
            from pipeline.tracking.registry import log_model

            assert outcome.checkpoint is not None
            log_model(
                tracker.uri, study_run, name, outcome.checkpoint, classes, backbone, self._tags
            )

        self.call(log)

    def end(self, status: str, metrics: Mapping[str, float]) -> None:
        """Closes the study's run."""
        self.call(lambda tracker, study_run: tracker.end_study(study_run, status, metrics))


class TrackedTrials(RunListener):
    """Has MLflow follow the trials of a search.

    Args:
        studies: Gives a study's `TrackedStudy`.
    """

    def __init__(self, studies: Callable[[str], TrackedStudy]) -> None:
        self._studies = studies

    def run_restored(self, study: str, record: TrialRecord, scores: Mapping[int, Any]) -> None:
        """Completes the run of a trial that had ended when everything was killed."""
        self._studies(study).trial_restored(record, scores)

    def run_started(self, run: Run) -> None:
        """Starts a trial's run, or finds it."""
        if run.stage == TRIAL:
            self._studies(run.study).trial_started(run.number, run.params)

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Adds an epoch to a trial's curves."""
        if run.stage == TRIAL:
            self._studies(run.study).epoch_ended(run.number, report, not is_news)

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """Closes a trial's run."""
        if run.stage == TRIAL:
            self._studies(run.study).trial_ended(record)

    def run_suspended(self, run: Run) -> None:
        """Closes the run of a trial until it goes on."""
        if run.stage == TRIAL:
            self._studies(run.study).trial_suspended(run.number)


def _closing_metrics(trial: TrialRecord) -> dict[str, float]:
    return {"epochs_done": trial.epochs_done, "wall_s": trial.wall_s}
