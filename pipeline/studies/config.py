"""How a study searches: the fields of ``search`` in a configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from adu.config import StrictModel
from pipeline.studies.goal import Goal, Least, ObjectiveText
from pipeline.studies.samplers import SamplerConfig


class StudyConfig(StrictModel):
    """How each study searches."""

    trials: int = Field(20, ge=1, description="trials of a study, the paper's defaults included")
    wall_time_s: float | None = Field(
        None, gt=0, description="seconds of a study after which no trial begins; unset: no limit"
    )
    target_h: float | None = Field(
        None, gt=0, le=1, description="validation H at which a study ends; unset: none"
    )
    patience: int | None = Field(
        None, ge=1, description="trials without a better one after which a study ends; unset: none"
    )
    at_once: int | None = Field(
        None,
        ge=1,
        description="trials of a study at the same time; 1: what it proposes depends on nothing "
        "else; unset: more than one where an executor would have nothing to do",
    )
    sampler: str | SamplerConfig = Field(
        "tpe",
        description="how Optuna proposes: tpe, gp, cmaes, nsga2, nsga3, random, grid, or the "
        "import path of a sampler of Optuna's; or such a name with options",
    )
    objective: ObjectiveText = Field(
        "h",
        description="what is searched for: an expression of h, mem, for and distance, such as "
        "'0.7*mem+0.3*for' or 'mem-distance'; package.module:function of the first three; or "
        "mem_for: the Pareto front of two",
    )
    min_mem: Least | None = Field(
        None,
        description="models with less Mem are worth less than all others: a fraction, or a share "
        "of zero-shot's such as '80%'; unset: no limit",
    )
    min_mem_each: Least | None = Field(
        None,
        description="so are models with less accuracy on one of the domains to keep: a fraction, "
        "or a share of zero-shot's there; unset: no limit",
    )
    max_forget_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="so are models with a higher accuracy on the forget domains; unset: no limit",
    )
    race: int = Field(
        3,
        ge=1,
        description="so many of the best configurations are run again, with another seed in each "
        "round, after which the worst is dropped; the mean decides; 1: one look does",
    )
    tries: int = Field(
        4,
        ge=0,
        description="runs of the chosen configuration with further seeds, on validation images "
        "alone: the best of all its models is handed out",
    )
    startup_trials: int = Field(5, ge=1, description="random trials before the sampler learns")
    grid_points: int = Field(3, ge=2, description="values in each range, for the grid")
    warm_start: tuple[str, ...] = Field(
        (),
        description="try the best of these first: output folders of earlier searches, or "
        "'siblings', the studies of this one that have ended",
    )
    seed: int = Field(0, ge=0, description="of the sampler")
    scheduler: str = Field(
        "asha",
        description="how trials are stopped early: asha, hyperband, median, none, or the import "
        "path of a scheduler of Ray Tune's",
    )
    scheduler_options: dict[str, Any] = Field({}, description="more options of the scheduler")
    grace_epochs: int = Field(5, ge=1, description="epochs before a trial may be stopped")
    reduction_factor: float = Field(
        3.0, gt=1, description="of the trials at a rung, the best 1/factor go on (ASHA)"
    )
    storage: str | None = Field(
        None, description="database of Optuna's studies; unset: a file in the output folder"
    )

    @property
    def goal(self) -> Goal:
        """What each study searches for."""
        return Goal(
            self.objective,
            self.min_mem,
            self.max_forget_accuracy,
            min_mem_each=self.min_mem_each,
        )
