"""The untouched model on the validation images, for what is asked for as a share of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from adu import storage
from adu.errors import UserError
from adu.evaluation.metrics import Scores, scores_from_counts
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import REFERENCE, Run
from pipeline.studies.records import TrialRecord
from pipeline.studies.study import Study


class Reference:
    """A source of one run: zero-shot, once for all studies, which differ in what is to be kept.

    Args:
        studies: Those that wait for it; at least one.
        on_end: Called with this when all of them know it.
    """

    most_at_once = 1.0

    def __init__(self, studies: Sequence[Study], on_end: Callable[[Reference], None]) -> None:
        self._studies = studies
        self.on_end = on_end
        self.name = REFERENCE
        self.n_live = 0
        self.wants = True

    def propose(self) -> Run:
        """The run."""
        self.wants, self.n_live = False, 1
        spec = self._studies[0].spec
        # It is looked at once.
        config = RunConfig(
            forget=spec.base.forget, method=ZeroShotConfig(), train=TrainConfig(epochs=1)
        )
        values = config.model_dump(mode="json", by_alias=True)
        place = storage.join(spec.place, REFERENCE)
        return Run(spec.name, REFERENCE, REFERENCE, values, spec.context, place)

    def keep(self, run: Run, report: EpochReport) -> bool:
        """Nothing to do: see `end`."""
        return False

    def end(self, run: Run, record: TrialRecord) -> None:
        """Tells the studies.

        Raises:
            UserError: If zero-shot has failed, without which nothing can be compared.
        """
        self.n_live = 0
        if record.val is None:
            raise UserError(
                f"zero-shot, of which search.min_mem is a share, failed: {record.error}"
            )
        for study in self._studies:
            study.set_zero_shot(_kept(record.val, study.spec.base.forget))
        with contextlib.suppress(UserError):
            storage.remove(run.state_file)

    def suspend(self) -> None:
        """Nothing to do: it is run again."""


def _kept(val: Scores, forget: Sequence[str]) -> float:
    """Mem for another forget set."""
    n = val.n_by_domain
    correct = {d: round(share * n[d]) for d, share in val.accuracy_by_domain.items()}
    return scores_from_counts(correct, n, forget).mem
