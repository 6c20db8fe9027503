"""What becomes of a study at its end: pictures, and its record. In a thread: drawing takes time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from adu import storage
from adu.errors import UserError
from pipeline.executors.outcome_file import TestOutcome
from pipeline.jobs.plan import Plan
from pipeline.jobs.proof import StudyProof
from pipeline.jobs.tracked import SYNTHETIC_NOTE
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.results.output import Output
from pipeline.studies.records import StudyRecord, write_study_record


class Closing:
    """Closes studies, one after another.

    Args:
        plan: Of the search.
        output: Where it is kept.
    """

    def __init__(self, plan: Plan, output: Output) -> None:
        self._plan = plan
        self._output = output
        self._pool = ThreadPoolExecutor(1, "closing")
        self._futures: list[Future[str]] = []

    def close(
        self, record: StudyRecord, shown: Mapping[str, TestOutcome], proof: StudyProof | None
    ) -> None:
        """Has a study closed.

        Args:
            record: The study.
            shown: An outcome of each stage.
            proof: The study's, if it has come to its end.
        """
        self._futures.append(self._pool.submit(self._close, record, shown, proof))

    def finish(self) -> list[str]:
        """Waits until all are; returns what could not be written."""
        self._pool.shutdown()
        return [failure for future in self._futures if (failure := future.result())]

    def _close(
        self, record: StudyRecord, shown: Mapping[str, TestOutcome], proof: StudyProof | None
    ) -> str:
        name = forget_name(record.forget)
        file = self._output.study_file(name)
        try:
            if {"best", "zero_shot"} <= shown.keys():
                self._draw(record, shown["zero_shot"], shown["best"])
            if proof is not None:
                record.proof = proof.evidence()
            # Last: a study that has its record is not looked at again.
            patiently(file, lambda: write_study_record(record, file))
            self._output.forget_unfinished(name)
        except UserError as error:
            return f"{name}: its record could not be written: {error}"
        return ""

    def _draw(self, record: StudyRecord, before: TestOutcome, after: TestOutcome) -> None:
        # Takes seconds to import, which the start of a search need not wait for.
        from pipeline.results.pictures import study_pictures

        manifest = self._plan.manifest
        note = SYNTHETIC_NOTE if manifest.synthetic else ""
        folder = self._output.study_pictures(forget_name(record.forget))
        names = manifest.classes, manifest.domains
        for name, data in study_pictures(record, before, after, *names, note).items():
            storage.write_bytes(storage.join(folder, name), data)
