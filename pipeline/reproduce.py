"""Runs one of the paper's tables on a data set, and prints it beside the published one.

python pipeline/reproduce.py TABLE --manifest URL --backbone FOLDER ...

TABLE is one of the paper's, main, ablation, sensitivity, shots, depth and domain-accuracy, or
gaps: each option that the paper leaves open.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import ContextConfig
from adu.data import DataConfig
from adu.errors import UserError
from adu.manifest import Manifest
from adu.methods.adu import AduConfig
from adu.methods.baseline import PromptConfig
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    join_domains,
    merge,
    run_and_exit,
    run_command,
)
from pipeline.demo_data import prepare_demo
from pipeline.executors.cluster import connect, leave
from pipeline.executors.pool import ExecutorPool, ResourcesConfig, count_executors
from pipeline.executors.session import SESSION, TestOutcome
from pipeline.jobs.finals import FinalRun, FinalRunFailedError, run_finals
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.plan import (
    RESULTS,
    ForgetSet,
    TrackingConfig,
    absolute_context,
    forget_sets,
    open_manifest,
    study_name,
)
from pipeline.results.output import open_output, unique_name
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import (
    METRICS,
    METRICS_BY_TABLE,
    TABLES,
    Row,
    mean_and_spread,
    table_rows,
)
from pipeline.tracking.tracker import Tracker

EXIT_FAILED = 1

# Columns of a terminal that has room for the published figures beside the measured ones.
WIDE = 100

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.backbone.name": "backbone",
    "train.epochs": "epochs",
    "tracking.uri": "tracking-uri",
}


class ReproduceConfig(StrictModel):
    """Run one of the paper's tables: fixed configurations on every forget set, with every seed."""

    table: str = Field(description=f"one of {', '.join(TABLES)}")
    context: ContextConfig = ContextConfig()
    method: AduConfig = Field(AduConfig(), description="ADU's options, where a row sets no other")
    train: TrainConfig = TrainConfig()
    forget: tuple[ForgetSet, ...] | None = Field(
        None, description="the forget sets, each domain,domain,...; unset: all of a row's size"
    )
    sizes: tuple[int, ...] | None = Field(
        None, description="sizes of forget sets in the main table; unset: 1 to all but one"
    )
    blocks: int = Field(
        12, ge=1, description="blocks of the image tower, for the depth and gaps tables"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="every row's seeds")
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: str | None = Field(None, description="folder; unset: results/TABLE-DATASET-DATE-TIME")
    resume: bool = Field(False, description="go on with the table in the output folder")
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster; unset: RAY_ADDRESS, else a local one"
    )


@dataclass(frozen=True)
class Job:
    """A table that is to be run.

    Attributes:
        config: The user's configuration.
        manifest: The images.
        rows: The table's rows.
        folder: Where their results are kept, a file a run.
        left_out: Which rows cannot be run, and why.
        forget: The forget sets, if not all of a row's size.
    """

    config: ReproduceConfig
    manifest: Manifest
    rows: tuple[Row, ...]
    folder: Path
    left_out: tuple[str, ...] = ()
    forget: tuple[tuple[str, ...], ...] | None = None

    @property
    def metrics(self) -> Mapping[str, str]:
        """What the table shows, and the heads of the columns."""
        return METRICS_BY_TABLE.get(self.config.table, METRICS)

    def context(self, shots: int | None) -> ContextConfig:
        """The data that rows with so many shots are trained on."""
        context = absolute_context(self.config.context, self.manifest)
        if shots is None:
            return context
        data = context.data.model_copy(update={"shots": shots})
        return context.model_copy(update={"data": data})

    def runs(self, row: Row) -> list[FinalRun]:
        """A row's runs, seed by seed."""
        method = self._method(row)
        # Without anything to train, every seed is the same.
        seeds = self.config.seeds if row.method["name"] != "zero_shot" else self.config.seeds[:1]
        runs = []
        for seed in seeds:
            train = self.config.train.model_copy(update={**row.train, "seed": seed})
            for forget in self._forget_sets(row):
                values: dict[str, Any] = {"forget": forget, "method": method}
                run = parse_config(RunConfig, values, f"row '{row.label}'")
                runs.append(FinalRun(row.label, run.model_copy(update={"train": train})))
        return runs

    def _forget_sets(self, row: Row) -> list[tuple[str, ...]]:
        possible = row.forget_sets(self.manifest.domains)
        return [forget for forget in possible if self.forget is None or forget in self.forget]

    def _method(self, row: Row) -> Mapping[str, Any]:
        """A row's method: ADU and the Baseline have the user's prompts."""
        given = self.config.method.model_dump(mode="json", by_alias=True)
        if row.method["name"] == "baseline":
            given = {name: given[name] for name in PromptConfig.model_fields}
        elif row.method["name"] != "adu":
            given = {}
        return merge(given, row.method)

    def file(self, row: Row, run: RunConfig) -> Path:
        """Where the result of a run is kept."""
        name = f"{study_name(run.forget)}-seed-{run.train.seed}.json"
        return self.folder / "rows" / _slug(row) / name

    def todo(self, row: Row) -> list[FinalRun]:
        """A row's runs that have not come to their end."""
        return [final for final in self.runs(row) if not self.file(row, final.run).exists()]


def reproduce(config: ReproduceConfig) -> int:
    """Runs a table as far as it has not been run; returns the exit code."""
    Tracker.check(config.tracking.uri)
    job = _job(config)
    for row in job.rows:
        job.runs(row)  # a wrong option is told before anything starts
    identity = config.model_dump(
        mode="json", by_alias=True, exclude={"output", "resume", "address", "resources", "tracking"}
    )
    identity["manifest_digest"] = job.manifest.digest
    output = open_output(job.folder, identity, resume=config.resume)
    started_at = time.monotonic()
    with Interrupt() as interrupt, quiet_ray(output.ray_log) as console:
        try:
            code = _Runner(job, interrupt, console).run()
        except UserError:
            output.discard()
            raise
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        finally:
            leave()
        console.print(_table(job, console.width))
        console.print(f"{time.monotonic() - started_at:.0f} s, results in {job.folder}")
        return code


class _Runner:
    """Runs the rows of a table that have not been run."""

    def __init__(self, job: Job, interrupt: Interrupt, console: Console) -> None:
        self._job = job
        self._interrupt = interrupt
        self._console = console
        self._began_at = time.monotonic()

    def run(self) -> int:
        """Runs them; returns the exit code."""
        job = self._job
        for line in job.left_out:
            self._tell(f"left out  {line}")
        todo = [row for row in job.rows if job.todo(row)]
        if not todo:
            return EXIT_OK
        cluster = connect(job.config.address)
        self._interrupt.install()
        n_executors = count_executors(job.config.resources, cluster.nodes)
        log = _Log(job)
        code = EXIT_OK
        try:
            # Executors hold the images: other shots need other ones.
            for shots, rows in itertools.groupby(todo, key=lambda row: row.shots):
                code = max(code, self._run_rows(list(rows), shots, n_executors, log))
                if self._interrupt.stop.is_set():
                    break
            return code
        finally:
            log.end(code)

    def _run_rows(self, rows: Sequence[Row], shots: int | None, n_executors: int, log: _Log) -> int:
        """Runs rows with the same data; returns the exit code."""
        context = self._job.context(shots).model_dump(mode="json")
        pool = ExecutorPool(SESSION, context, self._job.config.resources, n_executors)
        try:
            pool.start()
            self._tell(f"starting {n_executors} executor{'s' * (n_executors != 1)}")
            pool.wait_ready()
            # A row keeps an executor busy until its end; one row more waits for any that is free.
            n_at_once = n_executors + 1
            with self._interrupt.graceful(pool.interrupt), ThreadPoolExecutor(n_at_once) as threads:
                codes = list(threads.map(lambda row: self._run_row(row, pool, log), rows))
            if EXIT_INTERRUPTED not in codes:
                return max(codes)
            if pool.failure is None:
                return EXIT_INTERRUPTED
            self._tell(f"failed    {pool.failure}; go on with --resume")
            return EXIT_FAILED
        finally:
            pool.close()

    def _run_row(self, row: Row, pool: ExecutorPool, log: _Log) -> int:
        """Runs a row and keeps its results; returns the exit code."""

        def keep(final: FinalRun, outcome: TestOutcome) -> None:
            # Logged before it counts as done: on resume its run is found again, and completed.
            log.run(row, final, outcome)
            file = str(self._job.file(row, final.run))
            storage.write_bytes(file, json.dumps(_result(row, final, outcome), indent=2).encode())

        runs, stop = self._job.todo(row), self._interrupt.stop
        try:
            if run_finals(row.label, runs, pool.executors, stop, _ignore_epoch, keep) is None:
                return EXIT_INTERRUPTED
        except FinalRunFailedError as error:
            self._tell(f"failed    {error}")
            return EXIT_FAILED
        h = mean(scores["h"] for scores in _by_seed(self._job, row))
        self._tell(f"{row.label}: H {100 * h:.1f}, after {time.monotonic() - self._began_at:.0f} s")
        return EXIT_OK

    def _tell(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _result(row: Row, final: FinalRun, outcome: TestOutcome) -> dict[str, Any]:
    scores = outcome.test.scores
    return {
        "row": row.label,
        "forget": study_name(final.run.forget),
        "seed": final.run.train.seed,
        "test": {**scores.as_dict(), "domain_accuracy": outcome.domain_accuracy},
        "accuracy_by_domain": scores.accuracy_by_domain,
    }


class _Log:
    """Keeps a table in MLflow: a run for the table, below it one for each run."""

    def __init__(self, job: Job) -> None:
        config, manifest = job.config, job.manifest
        self._job = job
        self._lock = threading.Lock()
        self._tracker = Tracker(config.tracking.uri, job.folder, manifest.name)
        self._tags = {
            "table": config.table,
            "backbone": config.context.backbone.name,
            "manifest_digest": manifest.digest,
            "synthetic": str(manifest.synthetic).lower(),
        }
        self._parent = self._tracker.start_study(
            f"{unique_name(job.folder)}/{config.table}",
            f"table {config.table}",
            self._tags,
            {"epochs": config.train.epochs, "shots": config.context.data.shots},
            manifest,
        )

    def run(self, row: Row, final: FinalRun, outcome: TestOutcome) -> None:
        """Logs a finished run; from any thread."""
        tags = {**self._tags, "forget": study_name(final.run.forget), "row": row.label}
        with self._lock:
            self._tracker.log_final(
                self._parent, row.label, final.run, outcome, self._job.manifest, tags
            )

    def end(self, code: int) -> None:
        """Closes the table's run with the means of its finished rows."""
        status = {EXIT_OK: "FINISHED", EXIT_INTERRUPTED: "KILLED"}.get(code, "FAILED")
        metrics = {
            f"{_slug(row)}/{name}": mean(scores[name] for scores in by_seed)
            for row in self._job.rows
            if (by_seed := _by_seed(self._job, row))
            for name in self._job.metrics
        }
        self._tracker.end_study(self._parent, status, metrics)


def _ignore_epoch(_: FinalRun, __: EpochReport) -> None:
    """A table shows final results only."""


def _table(job: Job, width: int) -> Table:
    """The measured figures, with the published ones beside them or, if it is narrow, below."""
    synthetic = " (synthetic data)" if job.manifest.synthetic else ""
    n_seeds = len(job.config.seeds)
    title = f"{job.config.table}: {job.manifest.name}{synthetic}, {n_seeds} seeds, test, %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    published = {metric for row in job.rows for metric in row.published}
    beside = published if width >= WIDE else set()
    table.add_column("", no_wrap=True)
    for metric, head in job.metrics.items():
        table.add_column(head, justify="right", no_wrap=True)
        if metric in beside:
            table.add_column("paper (diff.)", justify="right", no_wrap=True)
    for before, row in zip([job.rows[0], *job.rows], job.rows, strict=False):
        if row.size != before.size:
            table.add_section()
        by_metric = _values(job, row)
        cells = []
        for metric, values in by_metric.items():
            cells.append(mean_and_spread(values) if values else "-")
            if metric in beside:
                cells.append(_published(row, metric, values))
        table.add_row(row.label, *cells)
        if row.published and not beside:
            below = (_published(row, metric, values) for metric, values in by_metric.items())
            table.add_row("  paper (diff.)", *below, style="dim")
    return table


def _values(job: Job, row: Row) -> dict[str, list[float]]:
    by_seed = _by_seed(job, row)
    return {metric: [100 * scores[metric] for scores in by_seed] for metric in job.metrics}


def _published(row: Row, metric: str, values: Sequence[float]) -> str:
    """The paper's figure, and how much more was measured."""
    published = row.published.get(metric)
    if published is None:
        return ""
    difference = f" ({mean(values) - published:+.1f})" if values else ""
    return f"{published:.1f}{difference}"


def _by_seed(job: Job, row: Row) -> list[dict[str, float]]:
    """A row's metrics for each seed, averaged over the forget sets; empty if it was not run."""
    if job.todo(row):
        return []
    files = [job.file(row, final.run) for final in job.runs(row)]
    runs = [json.loads(file.read_text()) for file in files]
    return [
        {
            metric: mean(run["test"][metric] for run in runs if run["seed"] == seed)
            for metric in job.metrics
        }
        for seed in dict.fromkeys(run["seed"] for run in runs)
    ]


def _job(config: ReproduceConfig) -> Job:
    parent = Path(config.output).absolute().parent if config.output else RESULTS.absolute()
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    rows = table_rows(config.table, manifest.name, len(manifest.domains), config.blocks)
    forget = None
    if config.sizes is not None:
        rows = _of_sizes(rows, config.sizes, f"sizes = {config.sizes}", config.table)
    if config.forget is not None:
        forget = forget_sets(config.forget, manifest.domains)
        rows = _of_sizes(rows, [len(each) for each in forget], "forget", config.table)
        # The published figures are means over all forget sets of a size.
        rows = [replace(row, published={}) for row in rows]
    rows, left_out = _enough_images(rows, manifest, config.context.data)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    default = parent / f"{config.table}-{manifest.name}-{stamp}"
    folder = Path(config.output).absolute() if config.output else default
    return Job(config, manifest, tuple(rows), folder, tuple(left_out), forget)


def _of_sizes(rows: Sequence[Row], sizes: Sequence[int], field: str, table: str) -> list[Row]:
    kept = [row for row in rows if row.size in sizes]
    if not kept:
        allowed = ", ".join(map(str, sorted({row.size for row in rows})))
        raise UserError(
            f"{field}: the {table} table has no such forget sets (its sizes: {allowed})"
        )
    return kept


def _enough_images(
    rows: Sequence[Row], manifest: Manifest, data: DataConfig
) -> tuple[list[Row], list[str]]:
    """The rows that the manifest has enough images for, and what is wrong with the others.

    Raises:
        UserError: If none is left.
    """
    kept: list[Row] = []
    left_out: list[str] = []
    for row in rows:
        try:
            if row.shots is not None:
                manifest.few_shot_split(row.shots, data.val_shots, data.split_seed)
            kept.append(row)
        except UserError as error:
            left_out.append(f"{row.label}: {error}")
    if not kept:
        raise UserError(left_out[0])
    return kept, left_out


def _slug(row: Row) -> str:
    """A row's name in file names and MLflow's metrics."""
    return "".join(c if c.isalnum() else "_" for c in row.label)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--table", *arguments]
    return run_command(ReproduceConfig, reproduce, SHORTCUTS, join_domains(arguments))


if __name__ == "__main__":
    run_and_exit(main)
