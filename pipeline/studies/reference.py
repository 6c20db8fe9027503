"""The untouched model on the validation images, for what is asked for beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from adu import storage
from adu.errors import UserError
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import EpochReport
from pipeline.executors.run import REFERENCE, Run
from pipeline.studies.records import TrialRecord
from pipeline.studies.study import Study


class Reference:
    """A source of one run: zero-shot, before the first trial of a study.

    Args:
        study: The study, which waits for it.
        on_end: Called with this when the study knows it.
    """

    most_at_once = 1.0

    def __init__(self, study: Study, on_end: Callable[[Reference], None]) -> None:
        self.study = study
        self.on_end = on_end
        # Not the study's own, which has not begun.
        self.name = f"{study.name}, {REFERENCE}"
        self.n_live = 0
        self.wants = True

    def propose(self) -> Run:
        """The run."""
        self.wants, self.n_live = False, 1
        spec = self.study.spec
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
        """Tells the study.

        Raises:
            UserError: If zero-shot has failed, without which nothing can be compared.
        """
        self.n_live = 0
        if record.val is None:
            raise UserError(
                "zero-shot, of which search.min_mem or search.min_mem_each is a share, failed: "
                f"{record.error}"
            )
        self.study.set_zero_shot(record.val)
        with contextlib.suppress(UserError):
            storage.remove(run.state_file)

    def suspend(self) -> None:
        """Nothing to do: it is run again."""
