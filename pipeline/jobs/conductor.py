"""Conducts a search from the cluster's start to the summary: one queue over all its studies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console

from adu import storage
from adu.training.trainer import EpochReport
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK
from pipeline.executors.run import Run
from pipeline.jobs.closing import Closing
from pipeline.jobs.finals import ZeroShot, final_failures
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.metrics import SearchMetrics
from pipeline.jobs.plan import PROVE, Plan, with_split
from pipeline.jobs.proof import n_attacked
from pipeline.jobs.study_finals import StudyFinals
from pipeline.jobs.tracked import SYNTHETIC_NOTE, Tracked
from pipeline.names import forget_name
from pipeline.patience import patiently, tell_by
from pipeline.results.handout import SearchLog
from pipeline.results.output import Output
from pipeline.results.progress import Progress
from pipeline.results.summary import SearchRecord, Timing, render_summary, write_summary
from pipeline.results.time_left import StudyWork
from pipeline.studies.budget import JobBudget
from pipeline.studies.chosen import write_chosen
from pipeline.studies.listener import RunListener
from pipeline.studies.race import Race, n_again
from pipeline.studies.records import StudyRecord, grouped_failures, read_study_record
from pipeline.studies.reference import Reference
from pipeline.studies.rules import likely_epochs, make_rule
from pipeline.studies.selection import best_trial
from pipeline.studies.storage import open_storage
from pipeline.studies.study import Study

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
        self._tracked = Tracked(plan, output, self._tell)
        self._log = SearchLog(output.search_log)
        self._closing = Closing(plan, output)
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
        try:
            stored = open_storage(self._plan.config.search.storage, self._output.journal)
            if todo:
                self._search(todo, stored)
            else:
                self._tracked.begin(stored, {})
                self._failures += self._tracked.finish()
        finally:
            self._tracked.abandon()
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
        if not self._plan.has_ended(record):
            return False
        self._records[forget] = record
        return True

    def _search(self, todo: Sequence[Forget], stored: BaseStorage) -> None:
        config, interrupt = self._plan.config, self._interrupt
        context = with_split(self._plan.context, self._plan.manifest, self._output.url)
        self._plan = replace(self._plan, context=context)
        self._zero_shot = ZeroShot(self._plan.manifest, config.train, self._output.url)
        listeners: list[RunListener] = [self, self._tracked.at_work, self._log]
        self._job_at = time.monotonic()
        job = self._job = Job(config.address, config.resources, interrupt, listeners)
        self._progress = self._view(job.n_executors)
        projection = self._tracked.begin(stored, {"ray_job_id": job.cluster.job_id})
        self._metrics = SearchMetrics(self._plan.name, lambda: job.room, projection.lag_s)
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
            self._progress.note = lambda: projection.behind
            self._progress.news(f"starting {n} executor{'s' * (n != 1)}")
            failure = job.run(
                context.model_dump(mode="json"), self._plan.probes(), self._output.url
            )
        tell_by(None)
        if failure is not None:
            self._without_executors = True
            self._failures.append(failure)
        for forget, study in self._studies.items():
            if forget not in self._records and (study.records or study.name in job.queue.begun):
                # It did not come to its end.
                self._records[forget] = self._record_of(forget, study)
        self._failures += self._closing.finish()
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
        assert self._job is not None
        record = self._record_of(forget, study)
        if record.best is None:
            self._failures.append(f"{study.name}: {grouped_failures(record.trials)}")
            self._progress.study_state(study.name, "failed")
            self._records[forget] = record
            return
        self._progress.study_state(study.name, "final runs")
        queue, shared, end = self._job.queue, self._zero_shot, self._finals_ended
        finals = StudyFinals(self._plan, self._output, queue, shared, study, record, end)
        chosen = self._output.study_pictures(study.name)
        patiently(chosen, lambda: write_chosen(chosen, finals.configs, study.spec.context))

    def _finals_ended(self, finals: StudyFinals) -> None:
        """Has the best model attacked, if that is asked for, and closes the study."""
        record = self._records[finals.record.forget] = finals.record
        self._failures += final_failures(record)
        self._write_summary()
        name = forget_name(record.forget)
        proof = finals.proof()

        def end(failures: Sequence[str] = ()) -> None:
            record.complete, record.asked = True, self._plan.asked()
            if failures:
                # It is tried again when the search is resumed.
                del record.asked[PROVE]
            self._failures += failures
            self._progress.study_state(name, "done")
            self._write_summary()
            self._closing.close(record, finals.shown(), None if failures else proof)

        if proof is None:
            end()
            return
        assert self._job is not None
        self._progress.study_state(name, "proving")
        proof.begin(self._job.queue.add_fixed, end)

    def _record_of(self, forget: Forget, study: Study) -> StudyRecord:
        best = best_trial(study.records, study.goal)
        ended_by = study.ended_by
        return StudyRecord(forget, study.records, best, {}, False, ended_by, goal=study.goal)

    def _tell(self, text: str) -> None:
        self._log.news(text)
        if self._job is not None:
            self._progress.news(text)

    # What a person sees.

    def _view(self, n_executors: int) -> Progress:
        synthetic = f" ({SYNTHETIC_NOTE})" if self._plan.manifest.synthetic else ""
        search, epochs = self._plan.config.search, self._plan.config.train.epochs
        n_references, n_proofs = n_attacked(self._plan)
        budget = JobBudget(self._plan.config.budget, 0, len(self._plan.forget_sets))
        work = StudyWork(
            budget.share(search.trials),
            epochs,
            likely_epochs(search, epochs),
            n_again(search),
            self._plan.n_finals + n_references,
            n_proofs,
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
        ui = self._tracked.server.ui_command()
        self._console.print(render_summary(record, self._output.url, ui))
        earlier = [line for each in record.studies for line in final_failures(each)]
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
            "tracking_uri": self._tracked.server.shown,
        }
        return SearchRecord(
            self._plan.name,
            [self._records[f] for f in self._plan.forget_sets if f in self._records],
            self._timing,
            manifest.synthetic,
            self._interrupt.stop.is_set() or self._without_executors,
            details,
        )
