"""Conducts a search from the cluster's start to the summary: one queue over all its studies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console

from adu import storage
from adu.errors import UserError
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.run import Run
from pipeline.jobs.finals import final_configs, final_records, fixed_run
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.metrics import SearchMetrics
from pipeline.jobs.plan import Plan
from pipeline.jobs.tracked_search import SYNTHETIC_NOTE, TrackedSearch
from pipeline.names import forget_name
from pipeline.patience import patiently, tell_by
from pipeline.results.output import Output
from pipeline.results.progress import Progress
from pipeline.results.summary import SearchRecord, Timing, render_summary, write_summary
from pipeline.results.time_left import StudyWork
from pipeline.studies.budget import JobBudget
from pipeline.studies.listener import RunListener
from pipeline.studies.race import Race, n_again
from pipeline.studies.records import (
    StudyRecord,
    TrialRecord,
    read_study_record,
    write_study_record,
)
from pipeline.studies.reference import Reference
from pipeline.studies.rules import likely_epochs, make_rule
from pipeline.studies.selection import best_trial
from pipeline.studies.source import FixedRuns
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study
from pipeline.tracking.recorder import TrackedTrials
from pipeline.tracking.tracker import ui_command

Forget = tuple[str, ...]


class Conductor(RunListener):
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
        self._tracked = TrackedSearch(plan, output)
        self._timing = Timing()
        self._studies: dict[Forget, Study] = {}
        self._records: dict[Forget, StudyRecord] = {}
        self._failures: list[str] = []
        self._without_executors = False
        self._job: Job | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is something in the output that must not be lost."""
        return bool(self._records) or (self._job is not None and self._job.has_worked)

    def run(self) -> int:
        """Runs all studies and tells what came of them; returns the command's exit code.

        Raises:
            UserError: If the search cannot be started.
        """
        self._console.print(f"results in {self._output.url}", highlight=False, soft_wrap=True)
        todo = [forget for forget in self._plan.forget_sets if not self._restore(forget)]
        if todo:
            self._search(todo)
        return self._conclude()

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Counts the time in training loops."""
        if is_news:
            self._timing.train_s += report.train_s + report.val_s
        if not self._timing.executor_start_s:
            trained_s = report.train_s + report.val_s
            self._timing.executor_start_s = time.monotonic() - self._job_at - trained_s

    def _restore(self, forget: Forget) -> bool:
        """Takes the record of a study that came to its end, unless more is asked for now."""
        file = self._output.study_file(forget_name(forget))
        if not storage.exists(file):
            return False
        record = read_study_record(file)
        if not record.complete or record.asked != self._plan.asked():
            return False
        self._records[forget] = record
        return True

    def _search(self, todo: Sequence[Forget]) -> None:
        config, interrupt = self._plan.config, self._interrupt
        stored = open_storage(config.search.storage, self._output.journal)
        listeners: list[RunListener] = [self, TrackedTrials(self._tracked.study)]
        self._job_at = time.monotonic()
        job = self._job = Job(config.address, config.resources, interrupt, listeners)
        self._tracked.begin(job.cluster.job_id)
        self._progress = self._view(job.n_executors)
        self._metrics = SearchMetrics(self._plan.name, lambda: job.room, self._tracked.lag_s)
        listeners += [self._progress, self._metrics]
        for forget, record in self._records.items():
            for trial in record.trials:
                self._progress.run_restored(forget_name(forget), trial, {})
            self._progress.study_state(forget_name(forget), "done")
        gpus = job.resources.workers_per_trial * job.resources.gpus_per_worker
        budget = JobBudget(config.budget, gpus, len(self._plan.forget_sets))
        for forget in todo:
            self._open_study(job, forget, stored)
            budget.add(self._studies[forget])
        self._begin(job)
        tell_by(self._waiting)
        with self._progress, self._metrics:
            n = job.n_executors
            self._progress.news(f"starting {n} executor{'s' * (n != 1)}")
            context = self._plan.context.model_dump(mode="json")
            failure = job.run(context, self._plan.probes(), self._output.url)
        tell_by(None)
        if failure is not None:
            self._without_executors = True
            self._failures.append(failure)
        for forget, study in self._studies.items():
            if forget not in self._records and (study.records or study.name in job.queue.begun):
                self._leave(forget, study)
        self._failures += self._tracked.finish()
        self._timing.wall_s = time.monotonic() - self._started_at
        later_s = [s for overheads_s in job.queue.overheads_s.values() for s in overheads_s[1:]]
        self._timing.trial_overhead_median_s = median(later_s) if later_s else None
        self._write_summary()

    def _open_study(self, job: Job, forget: Forget, stored: BaseStorage) -> None:
        spec = self._plan.study(forget, self._output, stored, self._siblings)
        study = self._studies[forget] = Study(spec, lambda study: self._trials_ended(forget, study))
        job.rules.add(study, make_rule(spec.config, spec.base.train.epochs))
        for record in study.records:
            for listener in (self._progress, self._metrics):
                listener.run_restored(study.name, record, {})
            scores = study.restored[record.number]
            self._tracked.study(study.name).trial_restored(record, scores)

    def _begin(self, job: Job) -> None:
        """Queues the studies, those that need zero-shot once it is known."""
        for study in self._studies.values():
            if study.goal.lacks_zero_shot:
                job.queue.add_fixed(Reference(study, lambda it: job.queue.add_study(it.study)))
            else:
                job.queue.add_study(study)

    def _waiting(self, line: str) -> None:
        """Something outside cannot be reached."""
        self._progress.news(line)
        self._metrics.waited()

    def _siblings(self) -> list[Mapping[str, Any]]:
        """The best parameters of the studies that have ended."""
        records = list(self._records.values())
        return [record.best.params for record in records if record.best]

    # What becomes of a study.

    def _trials_ended(self, forget: Forget, study: Study) -> None:
        """Has the best configurations compared once more."""
        assert self._job is not None
        self._progress.study_state(study.name, "racing")
        self._job.queue.add_fixed(Race(study, lambda _: self._race_ended(forget, study)))

    def _race_ended(self, forget: Forget, study: Study) -> None:
        """Has the best configuration and what it is compared with tested."""
        record = self._record_of(forget, study)
        for trial in record.trials:
            if trial.again:
                self._tracked.study(study.name).trial_again(trial)
        if record.best is None:
            self._failures.append(f"{study.name}: {_grouped_failures(record.trials)}")
            self._progress.study_state(study.name, "failed")
            self._tracked.close(record, "FAILED")
            self._records[forget] = record
            return
        self._progress.study_state(study.name, "final runs")
        seeds = self._plan.config.final.seeds
        base, space = self._plan.base(forget), self._plan.space(forget)
        paper = self._plan.paper(forget)
        configs = final_configs(base, space, record.best.params, seeds, paper)
        folder = self._output.finals(study.name)
        context = study.spec.context
        finals = [
            (fixed_run(study.name, stage, config, context, folder), config)
            for stage, config in configs
        ]
        outcomes: dict[str, TestOutcome] = {}

        def keep(run: Run, outcome: TestOutcome) -> None:
            # Nothing is built on it once another search has the output.
            self._output.check()
            outcomes[run.place] = outcome

        def end(runs: FixedRuns) -> None:
            record.finals = final_records(finals, outcomes, runs.failures)
            record.complete, record.asked = True, self._plan.asked()
            self._finals_ended(record, finals, outcomes)

        assert self._job is not None
        runs = [run for run, _ in finals]
        self._job.queue.add_fixed(FixedRuns(study.name, runs, keep, end))

    def _finals_ended(
        self,
        record: StudyRecord,
        finals: Sequence[tuple[Run, RunConfig]],
        outcomes: Mapping[str, TestOutcome],
    ) -> None:
        name = forget_name(record.forget)
        self._records[record.forget] = record
        self._failures += self._final_failures(record)
        known = [(run.stage, config, outcomes.get(run.place)) for run, config in finals]
        self._tracked.finals(record, known)
        self._tracked.close(record, "FINISHED")
        self._progress.study_state(name, "done")
        self._write_summary()
        # After what MLflow is told: a study that has its record is not looked at again.
        self._tracked.then(lambda: self._close_output(record))

    @staticmethod
    def _final_failures(record: StudyRecord) -> list[str]:
        name = forget_name(record.forget)
        return [
            f"{name}: final run {final.label}, seed {seed}: {error}"
            for final in record.finals.values()
            for seed, error in final.errors.items()
        ]

    def _close_output(self, record: StudyRecord) -> None:
        """Writes down that a study is finished."""
        name = forget_name(record.forget)
        file = self._output.study_file(name)
        try:
            patiently(file, lambda: write_study_record(record, file))
            self._output.forget_unfinished(name)
        except UserError as error:
            self._failures.append(f"{name}: its record could not be written: {error}")

    def _leave(self, forget: Forget, study: Study) -> None:
        """Tells of a study that did not come to its end."""
        record = self._records[forget] = self._record_of(forget, study)
        self._tracked.close(record, "KILLED")

    def _record_of(self, forget: Forget, study: Study) -> StudyRecord:
        best = best_trial(study.records, study.goal)
        ended_by = study.ended_by
        return StudyRecord(forget, study.records, best, {}, False, ended_by, goal=study.goal)

    # What a person sees.

    def _view(self, n_executors: int) -> Progress:
        synthetic = f" ({SYNTHETIC_NOTE})" if self._plan.manifest.synthetic else ""
        search, epochs = self._plan.config.search, self._plan.config.train.epochs
        further = self._plan.n_finals + n_again(search.race)
        budget = JobBudget(self._plan.config.budget, 0, len(self._plan.forget_sets))
        work = StudyWork(
            budget.share(search.trials), epochs, likely_epochs(search, epochs), further
        )
        return Progress(
            self._console,
            f"search {self._plan.name}{synthetic}",
            [forget_name(forget) for forget in self._plan.forget_sets],
            work,
            n_executors,
            self._started_at,
        )

    def _conclude(self) -> int:
        record = self._record()
        ui = ui_command(self._tracked.uri)
        self._console.print(render_summary(record, self._output.url, ui))
        earlier = [line for each in record.studies for line in self._final_failures(each)]
        for failure in dict.fromkeys([*self._failures, *earlier]):
            self._console.print(f"failed    {failure}", markup=False, highlight=False)
        if record.interrupted and not self._without_executors:
            return EXIT_INTERRUPTED
        return EXIT_FAILED if self._failures or earlier else EXIT_OK

    def _write_summary(self) -> None:
        self._timing.wall_s = time.monotonic() - self._started_at
        write_summary(self._record(), self._output.summary_file)

    def _record(self) -> SearchRecord:
        manifest = self._plan.manifest
        details = {
            "manifest": manifest.url,
            "manifest_digest": manifest.digest,
            "backbone": self._plan.config.context.backbone.name,
            "tracking_uri": self._tracked.uri,
        }
        return SearchRecord(
            self._plan.name,
            [self._records[f] for f in self._plan.forget_sets if f in self._records],
            self._timing,
            manifest.synthetic,
            self._interrupt.stop.is_set() or self._without_executors,
            details,
        )


def _grouped_failures(trials: Sequence[TrialRecord]) -> str:
    """Why all trials failed, the most frequent reason first."""
    reasons = Counter(trial.error or "" for trial in trials)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    return f"all {len(trials)} trials failed: {listed}"
