"""A search as Prometheus sees it: the agent of the driver's node serves this beside Ray's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from adu.training.trainer import EpochReport
from pipeline.executors.run import TRIAL, Run
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord

# How often figures are taken that nobody tells.
LOOK_S = 5.0

# What is served, under Ray's prefix `ray_`, and what it is. Dashboard and alerts name these alone.
METRICS = {
    "adu_trials": "trials that have ended, by study and state (complete, stopped, failed)",
    "adu_epochs": "epochs that were trained, final runs included",
    "adu_best_h": "best validation H of a study so far, 0 to 1",
    "adu_last_epoch_timestamp_seconds": "when the last epoch ended, as Unix time",
    "adu_executors": "executors that there is room for, by state (working, idle)",
    "adu_mlflow_lag_seconds": "age of the oldest thing that MLflow has not been told yet",
    "adu_storage_waits": "how often something that could not be reached was waited for",
}


class SearchMetrics(RunListener):
    """Tells Prometheus of a search, for as long as it is entered.

    Args:
        search: Its name, on every figure.
        room: Says how many executors may work now.
        lag_s: Says how far MLflow is behind, in seconds.
    """

    def __init__(self, search: str, room: Callable[[], int], lag_s: Callable[[], float]) -> None:
        self._room = room
        self._lag_s = lag_s
        tags = {"adu_search": search}
        self._trials = _counter("adu_trials", tags, "study", "state")
        self._epochs = _counter("adu_epochs", tags, "study")
        self._best_h = _gauge("adu_best_h", tags, "study")
        self._last_epoch = _gauge("adu_last_epoch_timestamp_seconds", tags)
        self._executors = _gauge("adu_executors", tags, "state")
        self._lag = _gauge("adu_mlflow_lag_seconds", tags)
        self._waits = _counter("adu_storage_waits", tags)
        # A search that has only begun is not one that stands still.
        self._last_epoch_s = time.time()
        self._best: dict[str, float] = {}
        self._at_work: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="metrics")

    def __enter__(self) -> SearchMetrics:
        """Begins to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Looks a last time."""
        self._done.set()
        self._thread.join()

    def run_restored(self, study: str, record: TrialRecord, scores: object) -> None:
        """An earlier session's trial counts for the best H."""
        self._note_h(study, record)

    def run_started(self, run: Run) -> None:
        """An executor has work."""
        self._at_work.add(run.key)

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Counts an epoch."""
        if is_news:
            self._epochs.inc(tags={"study": run.study})
            self._last_epoch_s = time.time()

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """Counts a trial."""
        self._at_work.discard(run.key)
        if run.stage == TRIAL:
            self._trials.inc(tags={"study": run.study, "state": record.state})
            self._note_h(run.study, record)

    def run_suspended(self, run: Run) -> None:
        """An executor is gone."""
        self._at_work.discard(run.key)

    def waited(self) -> None:
        """Something outside could not be reached."""
        self._waits.inc()

    def _note_h(self, study: str, record: TrialRecord) -> None:
        if record.val is not None:
            self._best[study] = max(record.val.h, self._best.get(study, 0.0))

    def _look(self) -> None:
        """Sets every gauge, again and again: Ray forgets one's value when it has been read."""
        while True:
            self._last_epoch.set(self._last_epoch_s)
            for study, h in list(self._best.items()):
                self._best_h.set(h, tags={"study": study})
            n_at_work = len(self._at_work)
            self._executors.set(n_at_work, tags={"state": "working"})
            self._executors.set(max(self._room() - n_at_work, 0), tags={"state": "idle"})
            self._lag.set(self._lag_s())
            if self._done.wait(LOOK_S):
                return


def _counter(name: str, tags: dict[str, str], *keys: str) -> Counter:
    counter = Counter(name, METRICS[name], (*tags, *keys))
    counter.set_default_tags(tags)
    return counter


def _gauge(name: str, tags: dict[str, str], *keys: str) -> Gauge:
    gauge = Gauge(name, METRICS[name], (*tags, *keys))
    gauge.set_default_tags(tags)
    return gauge
