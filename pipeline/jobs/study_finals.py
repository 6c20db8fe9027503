"""The final runs of a study, from its choice to its record."""

from __future__ import annotations

from collections.abc import Callable

from adu.training.config import RunConfig
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.run import Run
from pipeline.jobs.finals import ZeroShot, final_configs, final_records, fixed_run
from pipeline.jobs.plan import Plan
from pipeline.jobs.proof import StudyProof
from pipeline.results.output import Output
from pipeline.studies.queue import RunQueue
from pipeline.studies.records import SEARCHED, StudyRecord
from pipeline.studies.selection import best_seed, luckiest_seed
from pipeline.studies.source import FixedRuns
from pipeline.studies.study import Study

Final = tuple[Run, RunConfig]


class StudyFinals:
    """What a study is judged by: its best configuration and what that is compared with.

    Args:
        plan: Of the search.
        output: Where it is kept.
        queue: Takes the runs.
        zero_shot: The untouched model's outcome, which studies share.
        study: The study.
        record: What is known of it, its best configuration included.
        on_end: Called with this once everything is tested, and the record has it.
    """

    def __init__(
        self,
        plan: Plan,
        output: Output,
        queue: RunQueue,
        zero_shot: ZeroShot,
        study: Study,
        record: StudyRecord,
        on_end: Callable[[StudyFinals], None],
    ) -> None:
        assert record.best is not None
        self.record = record
        self._plan, self._output, self._study = plan, output, study
        self._zero_shot, self._on_end = zero_shot, on_end
        self._outcomes: dict[str, TestOutcome] = {}
        spec, final = study.spec, plan.config.final
        paper = plan.paper(spec.base.forget)
        again = luckiest_seed(record.best, spec.base.train.seed, record.goal)
        self.configs = final_configs(
            spec.base,
            spec.space,
            record.best.params,
            final.seeds,
            again,
            final.stages(paper is None),
            paper,
        )
        folder = output.finals(study.name)
        self._finals: list[Final] = [
            (fixed_run(study.name, stage, config, spec.context, folder), config)
            for stage, config in self.configs
        ]
        self._shared = zero_shot.runs(study.name, spec.context)
        # The last one is the untouched model.
        runs = [*self._shared, *(run for run, _ in self._finals[:-1])]
        queue.add_fixed(FixedRuns(study.name, runs, self._keep, self._ended))

    def shown(self) -> dict[str, TestOutcome]:
        """An outcome of each stage: of several seeds the one whose model is the best.

        Of the best configuration it is that of the model handed out.
        """
        found: dict[str, list[TestOutcome]] = {}
        for run, _ in self._finals:
            if run.place in self._outcomes:
                stage = "best" if run.stage in SEARCHED else run.stage
                found.setdefault(stage, []).append(self._outcomes[run.place])
        goal = self.record.goal
        return {
            stage: seeds[best_seed([outcome.val for outcome in seeds], goal)]
            for stage, seeds in found.items()
        }

    def proof(self) -> StudyProof | None:
        """Attacks on what was tested; None if they are not asked for, or there is no best model."""
        best = {
            config.train.seed: (config, run.outcome_file)
            for run, config in self._finals
            if run.stage in SEARCHED
            and run.place in self._outcomes
            and self._outcomes[run.place].checkpoint
        }
        if self._plan.config.prove is None or not best:
            return None
        name, context = self._study.name, self._study.spec.context
        place = self._output.study_pictures(name)
        return StudyProof(self._plan, name, place, context, list(best.values()))

    def _keep(self, run: Run, outcome: TestOutcome) -> None:
        # Nothing is built on it once another search has the output.
        self._output.check()
        self._outcomes[run.place] = outcome

    def _ended(self, runs: FixedRuns) -> None:
        for run in self._shared:
            self._zero_shot.tell(self._outcomes.get(run.place), runs.failures.get(run.place, ""))
        self._zero_shot.then(lambda: self._conclude(runs.failures))

    def _conclude(self, failures: dict[str, str]) -> None:
        untouched, config = self._finals[-1]
        self._zero_shot.add_to(untouched, config, self._outcomes, failures)
        self.record.finals = final_records(self._finals, self._outcomes, failures)
        self._on_end(self)
