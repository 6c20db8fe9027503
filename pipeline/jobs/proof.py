"""What follows the final runs of a study: attacks on its best model and on its references.

First the references are trained, as runs that are tested; then every model is attacked, each as a
run of its own. Outcomes are files in the study's folder, and what is there is not done again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adu import storage
from adu.evidence.bench import read_outcomes
from adu.evidence.proof import ProofConfig
from adu.evidence.references import reference_run
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import PROOF, Attacked, Run
from pipeline.jobs.finals import fixed_run, seeded_run
from pipeline.jobs.plan import Plan
from pipeline.patience import patiently
from pipeline.results.evidence import make_evidence, proof_facts
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import FixedRuns, Source

REFERENCES = "references"


class Attacks:
    """A source of runs that attack a model each.

    What is done of one is for its worker to see, who has the models.

    Args:
        name: The study.
        runs: The runs.
        on_end: Called with this when none is left.
    """

    most_at_once = math.inf

    def __init__(self, name: str, runs: Sequence[Run], on_end: Callable[[Attacks], None]) -> None:
        self.name = name
        self.on_end = on_end
        self.n_live = 0
        self.failures: list[str] = []
        self._waiting = deque(runs)

    @property
    def wants(self) -> bool:
        """Whether a run has not begun."""
        return bool(self._waiting)

    def propose(self) -> Run:
        """The next run."""
        self.n_live += 1
        return self._waiting.popleft()

    def keep(self, run: Run, report: EpochReport) -> bool:
        """There are no epochs."""
        return False

    def end(self, run: Run, record: TrialRecord) -> None:
        """Notes why a model could not be attacked."""
        self.n_live -= 1
        if record.error is not None:
            self.failures.append(f"{run.key}: {record.error}")

    def suspend(self) -> None:
        """Nothing to do: the outcomes so far are files."""


@dataclass(frozen=True)
class StudyProof:
    """The proof of a study.

    Attributes:
        plan: Of the search.
        study: The study's name.
        place: Folder or URL of what is kept of it.
        context: Model and images, as plain values.
        best: What the best configuration was trained with, seed by seed, and the outcome files.
    """

    plan: Plan
    study: str
    place: str
    context: Mapping[str, Any]
    best: Sequence[tuple[RunConfig, str]]

    @property
    def config(self) -> ProofConfig:
        """What is tried, written out."""
        assert self.plan.config.prove is not None
        return self.plan.config.prove.written_out()

    def begin(self, add: Callable[[Source], None], then: Callable[[list[str]], None]) -> None:
        """Has everything run that has not been run.

        Args:
            add: Adds runs to the job's queue.
            then: Called with what has failed when nothing is left.
        """
        runs = self._references()

        def trained(source: FixedRuns) -> None:
            if source.failures:
                # Without them there is nothing to compare with.
                errors = ((run, source.failures.get(run.place)) for run in runs.values())
                then([f"{run.key}: {error}" for run, error in errors if error is not None])
                return
            files = {label: run.outcome_file for label, run in runs.items()}
            add(Attacks(self.study, self._attacks(files), lambda source: then(source.failures)))

        add(FixedRuns(self.study, list(runs.values()), on_end=trained))

    def evidence(self) -> dict[str, Any]:
        """Writes what has come of it; returns the verdict and the distance for the record."""
        # Takes seconds to import, which the start of a search need not wait for.
        from pipeline.results.evidence_page import write_evidence

        config, runs = self.config, [run for run, _ in self.best]
        battery = config.battery.attacks()
        entries = config.entries(runs)
        outcomes = patiently(self.place, lambda: read_outcomes(self.place, entries, battery))
        seeds = ", ".join(str(run.train.seed) for run in runs)
        facts = proof_facts(
            self.plan.manifest,
            runs[0].forget,
            self.plan.config.context.backbone.name,
            f"the best configuration of search {self.plan.name}, seeds {seeds}",
            config,
            outcomes,
        )
        evidence = make_evidence(runs[0].method.name, outcomes, config, facts)
        write_evidence(evidence, self.place)
        distance = evidence.standings[evidence.label].distance.mean
        return {"verdict": evidence.verdict, "distance": distance}

    def _references(self) -> dict[tuple[str, int], Run]:
        """The runs that train the references, by label and seed."""
        found: dict[tuple[str, int], Run] = {}
        for run, _ in self.best:
            for name in self.config.references_of(run):
                # Apart from each other: equal configurations are not trained on equal images.
                folder = storage.join(self.place, REFERENCES, name)
                fixed = fixed_run(self.study, name, reference_run(name, run), self.context, folder)
                label = f"reference {name}-{run.train.seed}"
                found[name, run.train.seed] = replace(fixed, name=label)
        return found

    def _attacks(self, references: Mapping[tuple[str, int], str]) -> list[Run]:
        """A run a model.

        Args:
            references: Outcome files of the references, by label and seed.
        """
        by_seed = {run.train.seed: (run, file) for run, file in self.best}
        asked = self.config.model_dump(mode="json")
        found = []
        for label, seed in self.config.entries([run for run, _ in self.best]):
            # The ends of the scale have no run of their own.
            run, file = by_seed.get(seed, self.best[0])
            of_seed = {name: f for (name, its), f in references.items() if its == run.train.seed}
            found.append(
                Run(
                    self.study,
                    f"{label}-{seed}, attacked",
                    PROOF,
                    run.model_dump(mode="json", by_alias=True),
                    self.context,
                    self.place,
                    tested=True,
                    attacked=Attacked(label, seed, asked, {run.method.name: file, **of_seed}),
                )
            )
        return found


def n_attacked(plan: Plan) -> tuple[int, int]:
    """References that are trained for a study's proof, and models that are attacked."""
    if plan.config.prove is None:
        return 0, 0
    asked, base = plan.config.prove.written_out(), plan.base(plan.forget_sets[0])
    # Those with fresh seeds, and the best one of the search.
    runs = [base, *(seeded_run(base, seed) for seed in plan.config.final.seeds)]
    return sum(len(asked.references_of(run)) for run in runs), len(asked.entries(runs))
