"""Conducts a search from the cluster's start to the summary: its studies, side by side."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console

from adu import storage
from adu.errors import UserError
from adu.metrics import Scores
from adu.trainer import EpochReport
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK
from pipeline.executors.cluster import connect
from pipeline.executors.pool import ExecutorPool, check_runs, count_executors
from pipeline.executors.session import SESSION, TestOutcome
from pipeline.executors.sharing import Executors, Share, Turns
from pipeline.jobs.finals import FinalRun, FinalRunFailedError, final_runs, mean_scores, run_finals
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.plan import Plan, study_name
from pipeline.patience import patiently
from pipeline.results.output import Output, unique_name
from pipeline.results.progress import Progress, trial_key
from pipeline.results.summary import SearchRecord, Timing, render_summary, write_summary
from pipeline.studies.records import (
    FinalRecord,
    StudyRecord,
    TrialRecord,
    read_study_record,
    write_study_record,
)
from pipeline.studies.samplers import open_storage
from pipeline.studies.searcher import StudyListener
from pipeline.studies.selection import best_trial
from pipeline.studies.study_run import register_trials, run_study
from pipeline.tracking.recorder import Background, TrackedStudy
from pipeline.tracking.tracker import Tracker, default_uri, model_name, short_name, ui_command

EXIT_FAILED = 1

SYNTHETIC_NOTE = "synthetic demo data"


class Conductor:
    """Runs a planned search.

    Args:
        plan: What to do.
        output: Where to keep it.
        interrupt: Says when to end early.
        console: Where a person looks.
        started_at: `time.monotonic` of the command's start.
    """

    def __init__(
        self,
        plan: Plan,
        output: Output,
        interrupt: Interrupt,
        console: Console,
        started_at: float,
    ) -> None:
        self._plan = plan
        self._output = output
        self._interrupt = interrupt
        self._console = console
        self._started_at = started_at
        self._background = Background()
        self._tracker: Tracker | None = None
        self._timing = Timing()
        self._overheads_s: dict[int, list[float]] = {}
        self._records: dict[tuple[str, ...], StudyRecord] = {}
        self._failures: list[str] = []
        self._without_executors = False
        self._tags: dict[str, str] = {}
        # From then on there is something in the output that must not be lost.
        self.has_begun = False
        # Studies run side by side, each in a thread.
        self._lock = threading.RLock()

    def run(self) -> int:
        """Runs all studies and tells what came of them; returns the command's exit code.

        Raises:
            UserError: If the search cannot be started.
        """
        self._console.print(f"results in {self._output.url}", highlight=False, soft_wrap=True)
        if self._restore_all():
            return self._conclude()
        config = self._plan.config
        studies = open_storage(config.search.storage, self._output.journal)
        cluster = connect(config.address)
        self._interrupt.install()
        n_executors = count_executors(config.resources, cluster.nodes)
        # A new SQLite file takes MLflow seconds, in which the workers start.
        self._background.call(self._open_tracker)
        self._tags = {"ray_job_id": cluster.job_id, **code_version()}
        context = self._plan.context.model_dump(mode="json")
        pool = ExecutorPool(SESSION, context, config.resources, n_executors)
        progress = self._progress(n_executors)
        try:
            with progress:
                progress.message(f"starting {n_executors} executor{'s' * (n_executors != 1)}")
                pool.start()
                self._timing.executor_start_s = pool.wait_ready()
                probes = [run.model_dump(mode="json", by_alias=True) for run in self._plan.probes()]
                check_runs(pool.executors, probes)
                if pool.failure is not None:
                    raise pool.failure
                self._background.flush()
                progress.message("")
                self.has_begun = True

                def heard(news: str) -> None:
                    progress.executors(len(pool.executors), news)

                pool.listen(heard, self._interrupt.stop.set)
                with self._interrupt.graceful(pool.interrupt):
                    self._run_studies(pool, studies, progress)
            if pool.failure is not None:
                self._without_executors = True
                self._failures.append(f"{pool.failure}; go on with --resume")
            pool.dismiss()
            self._finish_tracking()
            self._write_summary()
            return self._conclude()
        finally:
            # After the table: a person need not wait for it, and Ray must not go before it.
            pool.close()

    def _restore_all(self) -> bool:
        """Takes the records of a search that was resumed with nothing left to do."""
        files = {f: self._output.study_file(study_name(f)) for f in self._plan.forget_sets}
        if not all(storage.exists(file) for file in files.values()):
            return False
        self._records = {forget: read_study_record(file) for forget, file in files.items()}
        return True

    def _run_studies(self, pool: ExecutorPool, studies: BaseStorage, progress: Progress) -> None:
        """Runs what is left: side by side, each on its share of the executors."""
        todo: list[tuple[str, ...]] = []
        for forget in self._plan.forget_sets:
            file = self._output.study_file(study_name(forget))
            if storage.exists(file):
                record = self._records[forget] = read_study_record(file)
                progress.study_restored(study_name(forget), record.trials)
                progress.study_state(study_name(forget), "done")
            else:
                todo.append(forget)

        register_trials(pool.mailboxes)
        at_once = self._plan.config.resources.studies_at_once
        # All studies count, also those that are done: the others' shares are as they were.
        n_studies = len(self._plan.forget_sets)
        turns = Turns(pool.executors, n_studies, at_once, self._interrupt.stop)

        def work(number: int, forget: tuple[str, ...]) -> None:
            with turns.take(number, study_name(forget)) as share:
                if not self._interrupt.stop.is_set():
                    # Final runs take any executor that is free.
                    self._run_one(forget, share, pool.executors, studies, progress)

        with ThreadPoolExecutor(max(len(todo), 1)) as threads:
            for future in [threads.submit(work, *each) for each in enumerate(todo)]:
                future.result()

    def _run_one(
        self,
        forget: tuple[str, ...],
        executors: Share,
        free: Executors,
        studies: BaseStorage,
        progress: Progress,
    ) -> None:
        """Runs a study to its end, or as far as it is let."""
        name = study_name(forget)
        tags = self._study_tags(forget)
        tracked = TrackedStudy(
            self._require_tracker,
            self._background,
            lambda tracker: tracker.start_study(
                f"{unique_name(self._output.url)}/{name}",
                f"forget {name}",
                tags,
                self._shared_params(),
                self._plan.manifest,
            ),
            tags,
        )
        progress.study_state(name, "searching")
        study = self._plan.study(forget, self._output, studies, self._siblings())
        listener = _Listeners(name, study.base.train.epochs, tracked, progress, self._count_epoch)
        run = run_study(study, executors, listener, self._interrupt.stop)
        best = best_trial(run.trials, study.config.min_mem)
        record = StudyRecord(forget, run.trials, best, {}, False, run.ended_by)
        with self._lock:
            self._overheads_s.update(run.overheads_s)
        if self._interrupt.stop.is_set():
            self._close_study(tracked, record, "KILLED")
        elif best is None:
            self._failures.append(f"{name}: {_grouped_failures(run.trials)}")
            progress.study_state(name, "failed")
            self._close_study(tracked, record, "FAILED")
        else:
            record = self._run_finals(record, free, progress, tracked)
        with self._lock:
            self._records[forget] = record
            self._write_summary()
        if record.complete:
            # After what MLflow is told: a study that has its record is not looked at again.
            self._background.call(lambda: self._close_output(record))

    def _run_finals(
        self, record: StudyRecord, executors: Executors, progress: Progress, tracked: TrackedStudy
    ) -> StudyRecord:
        forget, name = record.forget, study_name(record.forget)
        progress.study_state(name, "final runs")
        best = record.best.params if record.best else None
        seeds = self._plan.config.final.seeds
        runs = final_runs(self._plan.base(forget), self._plan.space(forget), best, seeds)

        def on_epoch(final: FinalRun, report: EpochReport) -> None:
            self._count_epoch(report)
            progress.run_epoch(name, f"{final.stage}/{final.run.train.seed}", report)

        def on_end(final: FinalRun, _: TestOutcome) -> None:
            progress.run_ended(name, f"{final.stage}/{final.run.train.seed}")

        stop, folder = self._interrupt.stop, self._output.finals(name)
        try:
            outcomes = run_finals(name, runs, executors, stop, on_epoch, on_end, folder)
        except FinalRunFailedError as error:
            self._failures.append(f"{name}: {error}")
            progress.study_state(name, "failed")
            self._close_study(tracked, record, "FAILED")
            return record
        if outcomes is None:
            self._close_study(tracked, record, "KILLED")
            return record
        record.finals = _final_records(runs, outcomes)
        record.complete = True
        self._log_finals(record, runs, outcomes, tracked)
        self._close_study(tracked, record, "FINISHED")
        progress.study_state(name, "done")
        return record

    def _close_output(self, record: StudyRecord) -> None:
        """Writes down that a study is finished."""
        name = study_name(record.forget)
        file = self._output.study_file(name)
        try:
            patiently(file, lambda: write_study_record(record, file))
            self._output.forget_unfinished(name)
        except UserError as error:
            self._failures.append(f"{name}: its record could not be written: {error}")

    def _siblings(self) -> list[Mapping[str, Any]]:
        """The best parameters of the studies that have ended."""
        with self._lock:
            return [record.best.params for record in self._records.values() if record.best]

    def _log_finals(
        self,
        record: StudyRecord,
        runs: Sequence[FinalRun],
        outcomes: Sequence[TestOutcome],
        tracked: TrackedStudy,
    ) -> None:
        manifest = self._plan.manifest
        for final, outcome in zip(runs, outcomes, strict=True):
            tracked.final(final.stage, final.run, outcome, manifest)
        shown: dict[str, TestOutcome] = {}
        for final, outcome in zip(runs, outcomes, strict=True):
            # Of several seeds the first stands for its stage.
            shown.setdefault(final.stage, outcome)
        if "best" in shown and self._plan.config.tracking.register_models:
            name = model_name(self._plan.name, record.forget)
            backbone = self._plan.context.backbone.name
            tracked.model(name, shown["best"], manifest.classes, backbone)
        if "best" in shown:
            tracked.pictures(
                lambda: self._draw(record, shown["zero_shot"], shown["best"]),
                self._output.study_pictures(study_name(record.forget)),
            )

    def _draw(
        self, record: StudyRecord, before: TestOutcome, after: TestOutcome
    ) -> dict[str, bytes]:
        # Takes seconds to import, which the start of a search need not wait for.
        from pipeline.results.pictures import study_pictures

        manifest = self._plan.manifest
        note = SYNTHETIC_NOTE if manifest.synthetic else ""
        return study_pictures(record, before, after, manifest.domains, note)

    def _close_study(self, tracked: TrackedStudy, record: StudyRecord, status: str) -> None:
        metrics: dict[str, float] = {"n_trials": len(record.trials)}
        if record.best is not None and record.best.val is not None:
            metrics |= {f"best/val_{k}": v for k, v in record.best.val.as_dict().items()}
        for stage, final in record.finals.items():
            metrics |= {f"{stage}/test_{k}": v for k, v in final.test.as_dict().items()}
        tracked.end(status, metrics)

    def _conclude(self) -> int:
        record = self._record()
        ui = ui_command(self._tracking_uri())
        self._console.print(render_summary(record, self._output.url, ui))
        for failure in self._failures:
            self._console.print(f"failed    {failure}", highlight=False, soft_wrap=True)
        if record.interrupted and not self._without_executors:
            return EXIT_INTERRUPTED
        return EXIT_FAILED if self._failures else EXIT_OK

    def _write_summary(self) -> None:
        self._timing.wall_s = time.monotonic() - self._started_at
        later = [s for overheads_s in self._overheads_s.values() for s in overheads_s[1:]]
        self._timing.trial_overhead_median_s = median(later) if later else None
        write_summary(self._record(), self._output.summary_file)

    def _record(self) -> SearchRecord:
        manifest = self._plan.manifest
        details = {
            "manifest": manifest.url,
            "manifest_digest": manifest.digest,
            "backbone": self._plan.config.context.backbone.name,
            "tracking_uri": self._tracking_uri(),
        }
        return SearchRecord(
            self._plan.name,
            [self._records[f] for f in self._plan.forget_sets if f in self._records],
            self._timing,
            manifest.synthetic,
            self._interrupt.stop.is_set(),
            details,
        )

    def _progress(self, n_executors: int) -> Progress:
        synthetic = f" ({SYNTHETIC_NOTE})" if self._plan.manifest.synthetic else ""
        # Three configurations are trained for each seed; zero-shot is not.
        return Progress(
            self._console,
            f"search {self._plan.name}{synthetic}",
            [study_name(forget) for forget in self._plan.forget_sets],
            self._plan.config.search.trials,
            n_executors,
            3 * len(self._plan.config.final.seeds),
            self._started_at,
        )

    def _count_epoch(self, report: EpochReport) -> None:
        with self._lock:
            self._timing.train_s += report.train_s + report.val_s

    def _tracking_uri(self) -> str:
        # Only an output on this machine can do without a server or database.
        return self._plan.config.tracking.uri or default_uri(Path(self._output.url))

    def _open_tracker(self) -> None:
        uri = self._plan.config.tracking.uri
        self._tracker = Tracker(uri, self._output.work, self._plan.manifest.name)

    def _require_tracker(self) -> Tracker:
        assert self._tracker is not None
        return self._tracker

    def _finish_tracking(self) -> None:
        """Waits for MLflow; what it could not write is told, the search's own results stand."""
        try:
            self._background.flush()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            self._failures.append(f"MLflow: some of the runs could not be written: {reason}")

    def _study_tags(self, forget: tuple[str, ...]) -> dict[str, str]:
        return {
            **self._tags,
            "forget": "+".join(forget),
            "search": unique_name(self._output.url),
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
            "sampler": config.search.sampler,
            "searched": ", ".join(short_name(path) for path in config.space),
            "objective": config.search.objective,
        }


class _Listeners(StudyListener):
    """Tells MLflow, the live view and the clock what happens in a study."""

    def __init__(
        self,
        study: str,
        epochs: int,
        tracked: TrackedStudy,
        progress: Progress,
        count_epoch: Any,
    ) -> None:
        self._study = study
        self._epochs = epochs
        self._tracked = tracked
        self._progress = progress
        self._count_epoch = count_epoch

    def trial_restored(self, trial: TrialRecord, scores: Mapping[int, Mapping[str, float]]) -> None:
        self._tracked.trial_restored(trial, scores)
        self._progress.study_restored(self._study, [trial])

    def trial_started(self, number: int, params: Mapping[str, Any]) -> None:
        self._tracked.trial_started(number, params)
        self._progress.run_started(self._study, trial_key(number), self._epochs)

    def epoch_ended(self, number: int, report: EpochReport, replayed: bool) -> None:
        self._tracked.epoch_ended(number, report, replayed)
        self._progress.run_epoch(self._study, trial_key(number), report)
        if not replayed:
            self._count_epoch(report)

    def trial_ended(self, trial: TrialRecord) -> None:
        self._tracked.trial_ended(trial)
        self._progress.trial_ended(self._study, trial)

    def trial_suspended(self, number: int) -> None:
        self._tracked.trial_suspended(number)
        self._progress.run_ended(self._study, trial_key(number))


def code_version() -> dict[str, str]:
    """The version of this code as tags of MLflow's, which its UI shows."""
    root = Path(__file__).parents[2]
    tags = {"adu_search_version": version("adu-search")}
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            tags["mlflow.source.git.commit"] = commit.stdout.strip()
    return tags


def _grouped_failures(trials: Sequence[TrialRecord]) -> str:
    """Why all trials failed, the most frequent reason first."""
    reasons = Counter(trial.error or "" for trial in trials)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    return f"all {len(trials)} trials failed: {listed}"


def _final_records(
    runs: Sequence[FinalRun], outcomes: Sequence[TestOutcome]
) -> dict[str, FinalRecord]:
    stages: dict[str, list[tuple[FinalRun, TestOutcome]]] = {}
    for final, outcome in zip(runs, outcomes, strict=True):
        stages.setdefault(final.stage, []).append((final, outcome))
    return {stage: _final_record(stage, pairs) for stage, pairs in stages.items()}


def _final_record(stage: str, pairs: Sequence[tuple[FinalRun, TestOutcome]]) -> FinalRecord:
    tests: list[Scores] = [outcome.test.scores for _, outcome in pairs]
    return FinalRecord(
        stage,
        pairs[0][0].run,
        mean_scores([outcome.val for _, outcome in pairs]),
        mean_scores(tests),
        tuple(final.run.train.seed for final, _ in pairs),
        tuple(tests),
    )
