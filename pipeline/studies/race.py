"""A study's best configurations once more, with further seeds: one look each may have been luck."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from adu import storage
from adu.errors import UserError
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import AGAIN, Run
from pipeline.studies.config import StudyConfig
from pipeline.studies.records import TrialRecord
from pipeline.studies.selection import best_trial, ranking
from pipeline.studies.source import EpochsSeen
from pipeline.studies.space import configure
from pipeline.studies.study import DEFAULTS, Study

# Added to the trials' own seed: no final run has such a one. The first of the race, and of the
# tries after it.
FIRST_SEED = 1000
FIRST_TRY = 2000

# What a configuration is worth that fails with another seed.
NOTHING = Scores(0.0, 0.0, 0.0, {}, {})


def n_again(config: StudyConfig) -> int:
    """How many runs a race and what follows it take, if there are as many to take part."""
    return config.race * (config.race + 1) // 2 - 1 + config.tries


class Race:
    """A source of runs: successive rejects among the best configurations of a study.

    Of `search.race` configurations each is run with a further seed, the one with the worst mean is
    dropped, the others are run with another seed, and so on until two are left, whose means decide.
    Only trials that were not stopped early take part, the defaults always: what a search hands
    out in their place has been compared with them on equal terms.

    Then the winner is run with more seeds, `search.tries`: seeds differ, and one of its models is
    to be handed out.

    Args:
        study: The study, whose trials have ended.
        on_end: Called with this when it is decided.
    """

    most_at_once = float("inf")

    def __init__(self, study: Study, on_end: Callable[[Race], None]) -> None:
        self._study = study
        self.on_end = on_end
        self.name = study.name
        self.n_live = 0
        self._epochs = EpochsSeen()
        complete = [record for record in study.records if record.state == "complete"]
        race = study.spec.config.race
        self._seed = study.spec.base.train.seed + FIRST_SEED
        # By their first look: who takes part was settled before anybody was run again.
        self._left = self._seated(self._ranked(complete, self._seed - 1), race)
        self._waiting: deque[tuple[TrialRecord, int]] = deque()
        self._first_try = study.spec.base.train.seed + FIRST_TRY
        self._begin_round()

    @property
    def wants(self) -> bool:
        """Whether another run has not begun."""
        if not self._waiting and not self.n_live:
            self._end_round()
        return bool(self._waiting)

    def propose(self) -> Run:
        """The next configuration with its seed."""
        (record, seed), spec = self._waiting.popleft(), self._study.spec
        run = configure(spec.base, record.params)
        train = run.train.model_copy(update={"seed": seed})
        name = f"{record.number} again, seed {seed}"
        self.n_live += 1
        return Run(
            spec.name,
            name,
            AGAIN,
            run.model_copy(update={"train": train}).model_dump(mode="json", by_alias=True),
            spec.context,
            storage.join(spec.place, f"{record.number}-{seed}"),
            number=record.number,
            params=record.params,
            distance=self._study.goal.measures_distance,
        )

    def keep(self, run: Run, report: EpochReport) -> bool:
        """Counts an epoch; returns whether that is news."""
        return self._epochs.add(run, report)

    def end(self, run: Run, record: TrialRecord) -> None:
        """Keeps what a configuration came to; one that fails with a seed is worth nothing there."""
        self.n_live -= 1
        (own,) = (each for each in self._study.records if each.number == run.number)
        seed = RunConfig.model_validate(run.config).train.seed
        scores = record.val if record.state != "failed" else None
        if scores is None:
            all_is_left = 1.0 if self._study.goal.measures_distance else None
            scores = replace(NOTHING, distance=all_is_left)
        self._study.keep_again(own, seed, scores, is_try=seed >= self._first_try)
        with contextlib.suppress(UserError):
            storage.remove(run.state_file)

    def suspend(self) -> None:
        """Nothing to do: what has no scores is run again."""

    @staticmethod
    def _seated(ranked: list[TrialRecord], seats: int) -> list[TrialRecord]:
        """The best ones, the last of whom makes room for the defaults if need be."""
        if seats < 2:
            return []
        seated = ranked[:seats]
        defaults = [record for record in ranked[seats:] if record.number == DEFAULTS]
        return [*seated[: seats - len(defaults)], *defaults]

    def _ranked(self, records: list[TrialRecord], seed: int) -> list[TrialRecord]:
        """The best first, by what was known after a seed: also when a kill comes in between."""
        then = {
            record.number: replace(
                record, again={s: look for s, look in record.again.items() if s <= seed}
            )
            for record in records
        }
        by_number = {record.number: record for record in records}
        ranked = ranking(list(then.values()), self._study.goal)
        return [by_number[record.number] for record in ranked]

    def _begin_round(self) -> None:
        self._waiting.extend((e, self._seed) for e in self._left if self._seed not in e.again)

    def _end_round(self) -> None:
        """Drops the worst and goes on with the next seed, as long as there is somebody to drop."""
        while len(self._left) > 2 and not self._waiting:
            self._left = self._ranked(self._left, self._seed)[:-1]
            self._seed += 1
            self._begin_round()
        if not self._waiting:
            self._begin_tries()

    def _begin_tries(self) -> None:
        winner = best_trial(self._study.records, self._study.goal)
        if winner is not None:
            seeds = range(self._first_try, self._first_try + self._study.spec.config.tries)
            self._waiting.extend((winner, seed) for seed in seeds if seed not in winner.tries)
