"""Makes MLflow hold what it should: compares by a search's UUID, and writes the difference.

Every write may be made twice, so that an answer that was lost costs nothing. A run carries the
fingerprint of what was written of it, as a tag that is written last.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from pipeline.tracking.server import Server, find_experiment, quiet_mlflow, without_secrets
from pipeline.tracking.truth import Truth
from pipeline.tracking.wanted import WantedRun, text_of

SEARCH_TAG = "search_id"
KEY_TAG = "adu.key"
FINGERPRINT_TAG = "adu.fingerprint"
PARENT_TAG = "mlflow.parentRunId"

# What a server takes in one request.
MAX_METRICS = 800
MAX_PARAMS = 100
MAX_TAGS = 100

# Characters of a data set's name and digest.
MAX_DATA_SET = 500
MAX_DIGEST = 32

PAGE = 1000

T = TypeVar("T")


class StoppedError(Exception):
    """The time for writing is over."""


@dataclass
class _There:
    """A run as MLflow has it."""

    run_id: str
    status: str
    ended_ms: int | None = None
    parent_id: str | None = None
    fingerprint: str | None = None
    params: set[str] = field(default_factory=set)
    # Names and steps of the points; None: not known.
    points: set[tuple[str, int]] | None = field(default_factory=set)
    files: set[tuple[str, str]] = field(default_factory=set)
    has_data: bool = False


class Mirror:
    """An output in an MLflow server.

    Args:
        server: Where.
        truth: What there should be.
    """

    def __init__(self, server: Server, truth: Truth) -> None:
        self.server = server
        self.truth = truth
        self.n_wanted = 0
        self.n_behind = 0
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._there: dict[str, _There] = {}
        self._is_certain = False

    def sync(self, go_on: Callable[[], bool] = lambda: True, *, look_again: bool = False) -> None:
        """Writes what is missing.

        Args:
            go_on: Asked before each run.
            look_again: Whether to ask what is there, though nobody else should have changed it.

        Raises:
            StoppedError: If it is not to go on.
            Exception: If MLflow does not do it. What is there is then looked at the next time.
        """
        wanted = self.truth.runs()
        self.n_wanted = len(wanted)
        self.n_behind = sum(self._differs(run, self._there) for run in wanted)
        with quiet_mlflow():
            try:
                self._sync(wanted, go_on, look_again)
            except BaseException:
                # Whether the last write was made, nobody knows.
                self._is_certain = False
                raise
        self.n_behind = 0

    def run_id(self, key: str) -> str:
        """MLflow's id of a run that was written."""
        return self._there[key].run_id

    @property
    def experiment(self) -> str:
        """The experiment's id, once something was written."""
        return self._experiment

    @property
    def client(self) -> MlflowClient:
        """MLflow's client."""
        if self._client is None:
            self._client = self.server.client()
        return self._client

    def _sync(
        self, wanted: Sequence[WantedRun], go_on: Callable[[], bool], look_again: bool
    ) -> None:
        if not self._experiment:
            data_set = self.truth.facts.data_set
            self._experiment = find_experiment(self.client, self.server.uri, data_set)
        if look_again or not self._is_certain:
            self._there = self._read()
            self._is_certain = True
        there = self._there
        for run in wanted:
            if not self._differs(run, there):
                continue
            if not go_on():
                raise StoppedError
            self._write(run, there)
            self.n_behind = max(self.n_behind - 1, 0)
        self._close_others(wanted, there)

    @staticmethod
    def _differs(run: WantedRun, there: Mapping[str, _There]) -> bool:
        known = there.get(run.key)
        if known is None or (known.fingerprint, known.status) != (run.fingerprint, run.status):
            return True
        # One that was below a run that was there twice.
        return run.parent is not None and known.parent_id != there[run.parent].run_id

    # What is there.

    def _read(self) -> dict[str, _There]:
        """All runs of the output by key; of a run that is there twice, one is removed."""
        found: dict[str, _There] = {}
        # One that was written to is kept before one that was not.
        for run in sorted(self._all(), key=_age):
            key = run.data.tags.get(KEY_TAG)
            if key is None:
                continue
            if key in found:
                # Created again when an answer was lost.
                self.client.delete_run(run.info.run_id)
                continue
            there = found[key] = _There(
                run.info.run_id,
                run.info.status,
                run.info.end_time,
                run.data.tags.get(PARENT_TAG),
                run.data.tags.get(FINGERPRINT_TAG),
                set(run.data.params),
                None if run.data.metrics else set(),
            )
            before = self._there.get(key)
            if before is not None and before.run_id == there.run_id:
                # What this process has written, it need not ask for.
                there.points, there.files = before.points, before.files
                there.has_data = before.has_data
        return found

    def _all(self) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs(
                [self._experiment],
                f"tags.`{SEARCH_TAG}` = '{self.truth.facts.id}'",
                max_results=PAGE,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    # Writing.

    def _write(self, run: WantedRun, there: dict[str, _There]) -> None:
        known = there.get(run.key)
        if known is None:
            known = there[run.key] = self._create(run, there)
        if run.parent is not None:
            known.parent_id = there[run.parent].run_id
        self._write_values(run, known)
        if run.split is not None and not known.has_data:
            facts = self.truth.facts
            data = data_input(facts.data_set, facts.digest, facts.manifest, run.split)
            self.client.log_inputs(known.run_id, [data])
            known.has_data = True
        self._write_files(run, known)
        self._set_status(run, known)
        # Last: a run that has it lacks nothing.
        self.client.set_tag(known.run_id, FINGERPRINT_TAG, run.fingerprint)
        known.fingerprint = run.fingerprint

    def _create(self, run: WantedRun, there: Mapping[str, _There]) -> _There:
        facts = self.truth.facts
        tags = {**facts.origin, KEY_TAG: run.key, SEARCH_TAG: facts.id}
        if run.parent is not None:
            tags[PARENT_TAG] = there[run.parent].run_id
        began_ms = run.began_ms or int(1000 * time.time())
        created = self.client.create_run(self._experiment, began_ms, tags, run.name)
        return _There(created.info.run_id, created.info.status)

    def _write_values(self, run: WantedRun, known: _There) -> None:
        if known.points is None:
            # A point that is written again with another time is there twice, and a run that goes on
            # after a kill has begun anew.
            known.points = self._points(known.run_id)
        tags = {**run.tags, "mlflow.runName": run.name}
        if known.parent_id is not None:
            tags[PARENT_TAG] = known.parent_id
        # Parameters cannot be changed.
        params = [Param(k, v) for k, v in run.params.items() if k not in known.params]
        points = [each for each in run.metrics if (each[0], each[3]) not in known.points]
        requests = zip_longest(
            _chunks([Metric(*each) for each in points], MAX_METRICS),
            _chunks(params, MAX_PARAMS),
            _chunks([RunTag(*tag) for tag in tags.items()], MAX_TAGS),
            fillvalue=(),
        )
        for some_points, some_params, some_tags in requests:
            self.client.log_batch(known.run_id, some_points, some_params, some_tags)
        known.params |= run.params.keys()
        known.points |= {(name, step) for name, _, _, step in points}

    def _points(self, run_id: str) -> set[tuple[str, int]]:
        names = self.client.get_run(run_id).data.metrics
        return {
            (name, point.step)
            for name in names
            for point in self.client.get_metric_history(run_id, name)
        }

    def _write_files(self, run: WantedRun, known: _There) -> None:
        missing = {
            path: file
            for path, file in run.files.items()
            if (path, file.version) not in known.files
        }
        if not missing:
            return
        with tempfile.TemporaryDirectory() as folder:
            for path, file in missing.items():
                place = Path(folder) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read())
            self.client.log_artifacts(known.run_id, folder)
        known.files |= {(path, file.version) for path, file in missing.items()}

    def _set_status(self, run: WantedRun, known: _There) -> None:
        is_over = run.status not in ("RUNNING", "SCHEDULED")
        if run.status == known.status and (not is_over or run.ended_ms == known.ended_ms):
            return
        if is_over:
            self.client.set_terminated(known.run_id, run.status, run.ended_ms)
        else:
            self.client.update_run(known.run_id, run.status)
        known.status, known.ended_ms = run.status, run.ended_ms

    def _close_others(self, wanted: Sequence[WantedRun], there: Mapping[str, _There]) -> None:
        """Closes runs that nobody is at work on any more, such as a trial without an epoch."""
        keys = {run.key for run in wanted}
        for key, known in there.items():
            if key not in keys and known.status == "RUNNING":
                self.client.set_terminated(known.run_id, "KILLED")
                known.status = "KILLED"


def _age(run: Run) -> tuple[bool, int, str]:
    return FINGERPRINT_TAG not in run.data.tags, run.info.start_time, run.info.run_id


def data_input(name: str, digest: str, url: str, split: str) -> DatasetInput:
    """A manifest as MLflow's data set.

    Args:
        name: Its name.
        digest: Its digest.
        url: Where it is.
        split: What of it a run has seen.
    """
    dataset = Dataset(
        name=text_of(name)[:MAX_DATA_SET],
        digest=digest[:MAX_DIGEST],
        source_type="manifest",
        source=json.dumps({"uri": without_secrets(url)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])


def _chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
