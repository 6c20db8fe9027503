"""What people ask authors for, as files of the output: images, figures seed by seed, a log."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adu.data.decoded import DataConfig
from adu.data.manifest import Manifest
from adu.training.trainer import EpochReport
from pipeline.executors.run import Run
from pipeline.names import forget_name, shown
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.tracking.fixed import SeedRun

IMAGES = "images.csv"
FIGURES = "figures.csv"

IMAGE_COLUMNS = ("image_id", "domain", "class", "sha256")


def images_csv(manifest: Manifest, data: DataConfig) -> bytes:
    """The few-shot and validation images of a data set, by id and hash."""
    split = manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)
    rows: list[Sequence[Any]] = []
    for use, numbers in (("train", split.train_rows), ("val", split.val_rows)):
        table = manifest.columns(IMAGE_COLUMNS, numbers).to_pydict()
        rows += [(use, *row) for row in zip(*(table[name] for name in IMAGE_COLUMNS), strict=True)]
    return _csv(("use", *IMAGE_COLUMNS), rows)


def figures_csv(finals: Iterable[SeedRun], domains: Sequence[str]) -> bytes:
    """Test figures of final runs, a line a seed; shares between 0 and 1."""
    head = ("forget", "stage", "seed", "mem", "for", "h", "domain_accuracy")
    rows = []
    for run in finals:
        if run.outcome is not None:
            scores = run.outcome.test.scores
            by_domain = [scores.accuracy_by_domain.get(domain, "") for domain in domains]
            name = forget_name(run.config.forget)
            own = (name, run.stage, run.config.train.seed, *scores.as_dict().values())
            rows.append((*own, run.outcome.domain_accuracy, *by_domain))
    return _csv((*head, *(f"accuracy of {domain}" for domain in domains)), rows)


class SearchLog(RunListener):
    """Writes what happens, a line each, behind what is there.

    Args:
        file: On a local disk.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def news(self, text: str) -> None:
        """Executors come or go, and more that is no run's."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._file.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{stamp} {shown(text)}\n")

    def run_started(self, run: Run) -> None:
        """A run has an executor."""
        self.news(f"{run.key}: begins")

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """A run has finished an epoch."""
        if is_news:
            scores = " ".join(f"{k} {v:.4f}" for k, v in report.val.as_dict().items())
            loss = report.losses["total"]
            self.news(f"{run.key}: epoch {report.epoch}/{report.epochs}, loss {loss:.4f}, {scores}")

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""
        self.news(f"{run.key}: {record.state}" + (f": {record.error}" if record.error else ""))

    def run_suspended(self, run: Run) -> None:
        """A run waits for another executor, or for the search to be resumed."""
        self.news(f"{run.key}: waits")


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
