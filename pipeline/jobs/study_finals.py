"""The final runs of a study: those that wait for its best configuration, and the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adu.training.config import RunConfig
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.run import Run
from pipeline.jobs.finals import (
    ZeroShot,
    best_configs,
    final_records,
    fixed_run,
    reference_configs,
)
from pipeline.jobs.plan import Plan
from pipeline.jobs.proof import StudyProof
from pipeline.results.output import Output
from pipeline.studies.queue import RunQueue
from pipeline.studies.records import StudyRecord
from pipeline.studies.source import FixedRuns
from pipeline.studies.study import Study

Final = tuple[Run, RunConfig]


class StudyFinals:
    """What a study is judged by: its best configuration, and references that are known beforehand.

    An executor that has nothing to do, while the last trials are at work or the best ones race,
    takes a reference: Tune would send it home, and start another one for the final runs.

    Args:
        plan: Of the search.
        output: Where it is kept.
        queue: Takes the runs.
        zero_shot: The untouched model's outcome, which studies share.
        study: The study.
        on_end: Called with this once everything is tested.

    Attributes:
        record: The study's record, from `test_best` on.
    """

    record: StudyRecord

    def __init__(
        self,
        plan: Plan,
        output: Output,
        queue: RunQueue,
        zero_shot: ZeroShot,
        study: Study,
        on_end: Callable[[StudyFinals], None],
    ) -> None:
        self._plan, self._output, self._queue = plan, output, queue
        self._zero_shot, self._study, self._on_end = zero_shot, study, on_end
        self._outcomes: dict[str, TestOutcome] = {}
        self._failures: dict[str, str] = {}
        self._best: list[Final] = []
        forget = study.spec.base.forget
        configs = reference_configs(
            study.spec.base, study.spec.space, plan.config.final.seeds, plan.paper(forget)
        )
        self._references = self._runs(configs)
        self._shared = zero_shot.runs(study.name, study.spec.context)
        # The last one is the untouched model.
        trained = [run for run, _ in self._references[:-1]]
        self._waits_for = {"references", "best"}
        runs = [*self._shared, *trained]
        self._reference_runs = FixedRuns(study.name, runs, self._keep, self._references_ended)
        queue.add_spare(self._reference_runs)

    @property
    def configs(self) -> list[tuple[str, RunConfig]]:
        """The stages and their configurations, the best one first."""
        return [(run.stage, config) for run, config in (*self._best, *self._references)]

    def test_references(self) -> None:
        """The trials have ended: the references are due, unless all have been tested by the way."""
        if "references" in self._waits_for:
            self._queue.add_fixed(self._reference_runs)

    def drop(self) -> None:
        """There is no best configuration to compare them with; others may need zero-shot."""
        self._reference_runs.keep_only(self._shared)

    def test_best(self, record: StudyRecord) -> None:
        """Has the best configuration of a study tested, which is all that is waited for now."""
        assert record.best is not None
        self.record = record
        seeds = self._plan.config.final.seeds
        self._best = self._runs(best_configs(self._study.spec.base, record.best.params, seeds))
        known = {run.place for run, _ in self._references}
        # The best may be the defaults.
        runs = [run for run, _ in self._best if run.place not in known]
        self._queue.add_fixed(FixedRuns(self._study.name, runs, self._keep, self._best_ended))

    def shown(self) -> dict[str, TestOutcome]:
        """An outcome of each stage: of several seeds the first stands for it."""
        found: dict[str, TestOutcome] = {}
        for run, _ in (*self._best, *self._references):
            if run.place in self._outcomes:
                found.setdefault(run.stage, self._outcomes[run.place])
        return found

    def proof(self) -> StudyProof | None:
        """Attacks on what was tested; None if they are not asked for, or there is no best model."""
        best = [
            (config, run.outcome_file)
            for run, config in self._best
            if run.place in self._outcomes and self._outcomes[run.place].checkpoint
        ]
        if self._plan.config.prove is None or not best:
            return None
        name, context = self._study.name, self._study.spec.context
        return StudyProof(self._plan, name, self._output.study_pictures(name), context, best)

    def _runs(self, configs: Sequence[tuple[str, RunConfig]]) -> list[Final]:
        name, context = self._study.name, self._study.spec.context
        folder = self._output.finals(name)
        return [
            (fixed_run(name, stage, config, context, folder), config) for stage, config in configs
        ]

    def _keep(self, run: Run, outcome: TestOutcome) -> None:
        # Nothing is built on it once another search has the output.
        self._output.check()
        self._outcomes[run.place] = outcome

    def _references_ended(self, runs: FixedRuns) -> None:
        for run in self._shared:
            self._zero_shot.tell(self._outcomes.get(run.place), runs.failures.get(run.place, ""))
        self._ended("references", runs)

    def _best_ended(self, runs: FixedRuns) -> None:
        self._ended("best", runs)

    def _ended(self, what: str, runs: FixedRuns) -> None:
        self._failures |= runs.failures
        self._waits_for.remove(what)
        if not self._waits_for:
            self._zero_shot.then(self._conclude)

    def _conclude(self) -> None:
        untouched, config = self._references[-1]
        self._zero_shot.add_to(untouched, config, self._outcomes, self._failures)
        finals = [*self._best, *self._references]
        self.record.finals = final_records(finals, self._outcomes, self._failures)
        self._on_end(self)
