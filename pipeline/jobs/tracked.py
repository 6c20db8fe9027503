"""MLflow follows a search: what the search says of itself, and from when to when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from optuna.storages import BaseStorage

from adu import storage
from pipeline.jobs.plan import Plan
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.results.handout import FIGURES, IMAGES, figures_csv, images_csv
from pipeline.results.output import Output
from pipeline.tracking.facts import Facts, StudyFacts, facts_of, write_facts
from pipeline.tracking.projection import Projection, project
from pipeline.tracking.server import server_of
from pipeline.tracking.truth import AtWork
from pipeline.tracking.wanted import short_name

SYNTHETIC_NOTE = "synthetic demo data"


class Tracked:
    """A search that MLflow follows.

    Args:
        plan: What is searched.
        output: Where it is kept.
        tell: Is told when MLflow falls behind, and when it has caught up.
    """

    def __init__(self, plan: Plan, output: Output, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._output = output
        self._tell = tell
        # Only an output on this machine can do without a server.
        self.server = server_of(plan.config.tracking, Path(output.url))
        self.at_work = AtWork()
        self._projection: Projection | None = None

    def begin(self, stored: BaseStorage, tags: Mapping[str, str]) -> Projection:
        """Has MLflow follow the search from here on; see `search_facts`."""
        facts = search_facts(self._plan, self._output, tags)
        patiently(self._output.url, lambda: write_facts(facts, self._output.url))
        self._write(IMAGES, images_csv(self._plan.manifest, self._plan.config.context.data))
        url = self._output.url
        self._projection = project(self.server, facts, url, stored, self.at_work, self._tell)
        return self._projection

    def finish(self) -> list[str]:
        """Writes what is left, for a limited time; returns what MLflow lacks then."""
        assert self._projection is not None
        truth = self._projection.truth
        finals = [run for study in truth.facts.studies for run in truth.finals(study)]
        self._write(FIGURES, figures_csv(finals, truth.facts.domains))
        behind = self._projection.finish(self._plan.config.tracking.end_s)
        return [behind] if behind else []

    def abandon(self) -> None:
        """Writes no more."""
        if self._projection is not None:
            self._projection.abandon()

    def _write(self, name: str, data: bytes) -> None:
        url = storage.join(self._output.url, name)
        patiently(url, lambda: storage.write_bytes(url, data))


def search_facts(plan: Plan, output: Output, tags: Mapping[str, str]) -> Facts:
    """The facts of a search.

    Args:
        plan: What is searched.
        output: Where it is kept.
        tags: More of this start of it, such as Ray's name of the job.
    """
    config = plan.config
    budgets = {"trials": str(config.search.trials), "sampler": config.search.sampler}
    params = {
        "epochs": config.train.epochs,
        "batch_size": config.train.batch_size,
        "shots": config.context.data.shots,
        "val_shots": config.context.data.val_shots,
        "searched": ", ".join(short_name(path) for path in config.space),
        "objective": config.search.objective,
    }
    return facts_of(
        plan.manifest,
        output.search_id,
        "search",
        name=plan.name,
        backbone=plan.context.backbone.name,
        method=config.method.name,
        tags={"output": output.url, **budgets, **tags},
        params={name: str(value) for name, value in params.items()},
        studies=tuple(_study(plan, output, forget) for forget in plan.forget_sets),
        goal=config.search.goal,
        register_models=config.tracking.register_models,
        in_database=config.search.storage is not None,
    )


def _study(plan: Plan, output: Output, forget: tuple[str, ...]) -> StudyFacts:
    name = forget_name(forget)
    return StudyFacts(
        forget=forget,
        stored_name=plan.stored_name(name, output),
        record=output.relative(output.study_file(name)),
        folder=output.relative(output.study_pictures(name)),
        outcomes=output.relative(output.finals(name)),
    )
