"""What all studies of a job may spend together, beside what each of them may."""

from __future__ import annotations

import time

from pydantic import Field

from adu.config import StrictModel
from pipeline.studies.study import Study


class BudgetConfig(StrictModel):
    """Budgets of a whole search; whichever is spent first ends the trials of all its studies."""

    trials: int | None = Field(
        None,
        ge=1,
        description="trials of all studies together: each has its equal share of them, up to "
        "search.trials, and what one leaves that has converged goes to those after it; unset: "
        "no limit",
    )
    wall_time_s: float | None = Field(
        None, gt=0, description="seconds of the search after which no trial begins; unset: no limit"
    )
    gpu_hours: float | None = Field(
        None, gt=0, description="GPU-hours of trials after which no other begins; unset: no limit"
    )


class JobBudget:
    """Shares out a job's budgets among its studies.

    Args:
        config: The budgets.
        gpus_per_run: What each run takes.
        n_studies: Of the job.
    """

    def __init__(self, config: BudgetConfig, gpus_per_run: float, n_studies: int) -> None:
        self._config = config
        self._gpus_per_run = gpus_per_run
        self._n_studies = n_studies
        self._began_at = time.monotonic()
        self._studies: list[Study] = []

    def add(self, study: Study) -> None:
        """Has a study spend from these budgets."""
        self._studies.append(study)
        # Its clock counts what earlier sessions took.
        self._began_at = min(self._began_at, study.began_at)
        study.budget = self

    def is_spent(self) -> bool:
        """Whether no further trial may begin."""
        config, searched_s = self._config, time.monotonic() - self._began_at
        if config.wall_time_s is not None and searched_s >= config.wall_time_s:
            return True
        if config.gpu_hours is not None and self._gpu_hours() >= config.gpu_hours:
            return True
        return config.trials is not None and self._n_begun() >= config.trials

    def n_left(self, study: Study) -> int | None:
        """Trials that a study may still begin, what others are to have left aside.

        Returns:
            None if that is for the study alone to say.
        """
        if self._config.trials is None:
            return None
        share = self.share(study.spec.config.trials)
        others = [other for other in self._studies if other is not study and not other.is_over]
        reserved = sum(max(share - other.n_begun, 0) for other in others)
        return self._config.trials - self._n_begun() - reserved

    def share(self, trials: int) -> int:
        """Trials that every study is to have, if each would have so many."""
        if self._config.trials is None:
            return trials
        return max(min(trials, self._config.trials // self._n_studies), 1)

    def _n_begun(self) -> int:
        return sum(study.n_begun for study in self._studies)

    def _gpu_hours(self) -> float:
        seconds = sum(record.wall_s for study in self._studies for record in study.records)
        return seconds * self._gpus_per_run / 3600
