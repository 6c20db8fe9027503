"""What a search says of itself to MLflow."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.jobs.plan import Plan
from pipeline.names import forget_name
from pipeline.results.output import Output
from pipeline.tracking.facts import Facts, StudyFacts, facts_of
from pipeline.tracking.wanted import short_name

SYNTHETIC_NOTE = "synthetic demo data"


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
        min_mem=config.search.min_mem,
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
