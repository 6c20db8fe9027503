"""Runs one of the paper's tables on a data set, and prints it beside the published one.

python pipeline/reproduce.py TABLE --manifest URL --backbone FOLDER ...

TABLE is one of the paper's, main, ablation, sensitivity, shots, depth and domain-accuracy, or
gaps: each option that the paper leaves open.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import ray
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import ContextConfig
from adu.data.decoded import DataConfig
from adu.data.forget import forget_domains
from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.methods.adu import AduConfig
from adu.methods.baseline import PromptConfig
from adu.training.config import RunConfig, TrainConfig
from pipeline.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    merge,
    run_and_exit,
    run_command,
)
from pipeline.demo_data import prepare_demo
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes, without_images
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Run
from pipeline.jobs.config import RESULTS, ForgetSet
from pipeline.jobs.finals import fixed_run
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.plan import absolute_context, forget_sets, open_manifest, with_split
from pipeline.names import file_name, forget_name
from pipeline.results.output import Output, open_output
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import (
    METRICS,
    METRICS_BY_TABLE,
    TABLES,
    Row,
    mean_and_spread,
    table_rows,
)
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import FixedRuns
from pipeline.tracking.facts import Facts, facts_of, fixed_facts, write_facts
from pipeline.tracking.projection import project
from pipeline.tracking.server import TrackingConfig, check, server_of
from pipeline.tracking.truth import AtWork

# Columns of a terminal that has room for the published figures beside the measured ones.
WIDE = 100

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.data.allow_uri": "allow-uri",
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
class TablePlan:
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

    def configs(self, row: Row) -> list[RunConfig]:
        """The configurations of a row, seed by seed."""
        method = self._method(row)
        # Without anything to train, every seed is the same.
        seeds = self.config.seeds if row.method["name"] != "zero_shot" else self.config.seeds[:1]
        configs = []
        for seed in seeds:
            train = self.config.train.model_copy(update={**row.train, "seed": seed})
            for forget in self._forget_sets(row):
                values: dict[str, Any] = {"forget": forget, "method": method}
                config = parse_config(RunConfig, values, f"row '{row.label}'")
                configs.append(config.model_copy(update={"train": train}))
        return configs

    def _forget_sets(self, row: Row) -> list[tuple[str, ...]]:
        if self.forget is None:
            return row.forget_sets(self.manifest.domains)
        return [forget for forget in self.forget if self._size(forget) == row.size]

    def _size(self, forget: tuple[str, ...]) -> int:
        """How many domains a forget set touches."""
        return len(forget_domains(forget, self.manifest.domains))

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
        name = f"{file_name(forget_name(run.forget))}-seed-{run.train.seed}.json"
        return self.folder / "rows" / _slug(row) / name

    def outcome_file(self, row: Row, run: RunConfig) -> Path:
        """Where a run's outcome is kept: checkpoint and figures, for MLflow."""
        return self.folder / "outcomes" / _slug(row) / f"{self.file(row, run).stem}.npz"

    def todo(self, row: Row) -> list[RunConfig]:
        """A row's configurations that have not been run."""
        return [config for config in self.configs(row) if not self.file(row, config).exists()]

    def runs(self, row: Row, context: Mapping[str, Any]) -> list[Run]:
        """What is to be run for a row, with its model and images."""
        folder = str(self.folder / "unfinished" / _slug(row))
        return [
            replace(
                fixed_run(row.label, row.label, config, context, folder),
                name=f"{forget_name(config.forget)}-seed-{config.train.seed}",
            )
            for config in self.todo(row)
        ]


def reproduce(config: ReproduceConfig) -> int:
    """Runs a table as far as it has not been run; returns the exit code."""
    plan = _plan(config)
    for row in plan.rows:
        plan.configs(row)  # a wrong option is told before anything starts
    check(config.tracking, plan.manifest.name)
    kept = {"table", "context", "method", "train", "blocks"}
    identity = config.model_dump(mode="json", by_alias=True, include=kept)
    identity["manifest_digest"] = plan.manifest.digest
    output = open_output(plan.folder, identity, resume=config.resume)
    started_at = time.monotonic()
    with Interrupt() as interrupt, quiet_ray(output.ray_log) as console:
        try:
            code = _run(plan, output, interrupt, console)
        except UserError:
            output.discard()
            raise
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        finally:
            ray.shutdown()
        console.print(_table(plan, console.width))
        console.print(f"{time.monotonic() - started_at:.0f} s, results in {plan.folder}")
        return code


def _run(plan: TablePlan, output: Output, interrupt: Interrupt, console: Console) -> int:
    """Runs what has not been run; returns the exit code."""

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for line in plan.left_out:
        tell(f"left out  {line}")
    # Executors hold the images: rows with the same shots follow each other.
    todo = sorted((row for row in plan.rows if plan.todo(row)), key=lambda row: row.shots or 0)
    if not todo:
        return EXIT_OK
    log = _Log(plan, tell)
    job = Job(plan.config.address, plan.config.resources, interrupt, [log])
    tell(f"starting {job.n_executors} executor{'s' * (job.n_executors != 1)}")
    contexts = {
        shots: with_split(plan.context(shots), plan.manifest, str(plan.folder)).model_dump(
            mode="json"
        )
        for shots in dict.fromkeys(row.shots for row in todo)
    }
    for row in todo:
        runs = plan.runs(row, contexts[row.shots])
        keep = partial(log.outcome, row)
        job.queue.add_fixed(FixedRuns(row.label, runs, keep, partial(log.row, row)))
    context = contexts[todo[0].shots]
    facts = _facts(plan, output)
    write_facts(facts, output.url)
    server = server_of(plan.config.tracking, plan.folder)
    projection = project(server, facts, output.url, None, AtWork(), tell)
    try:
        failure = job.run(context, [plan.configs(row)[0] for row in todo], str(plan.folder))
        if failure is not None:
            log.failures.append(failure)
        if behind := projection.finish(plan.config.tracking.end_s):
            log.failures.append(behind)
    finally:
        projection.abandon()
    for line in log.failures:
        tell(f"failed    {line}")
    code = EXIT_INTERRUPTED if interrupt.stop.is_set() else EXIT_OK
    return EXIT_FAILED if log.failures else code


def _facts(plan: TablePlan, output: Output) -> Facts:
    """What MLflow is told of a table beside the figures."""
    config = plan.config
    shared = {"epochs": config.train.epochs, "shots": config.context.data.shots}
    runs = [
        (row.label, run, str(plan.outcome_file(row, run)))
        for row in plan.rows
        for run in plan.configs(row)
    ]
    return facts_of(
        plan.manifest,
        output.search_id,
        "table",
        name=f"table {config.table}",
        backbone=config.context.backbone.name,
        method=config.method.name,
        tags={"output": output.url, "table": config.table},
        params={name: str(value) for name, value in shared.items()},
        fixed=fixed_facts(runs, output.url),
    )


def _result(row: Row, config: RunConfig, outcome: TestOutcome) -> dict[str, Any]:
    scores = outcome.test.scores
    return {
        "row": row.label,
        "forget": forget_name(config.forget),
        "seed": config.train.seed,
        "test": {**scores.as_dict(), "domain_accuracy": outcome.domain_accuracy},
        "accuracy_by_domain": scores.accuracy_by_domain,
    }


class _Log(RunListener):
    """Keeps a table: for each run its figures, and what came of it without its images."""

    def __init__(self, plan: TablePlan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._began_at = time.monotonic()
        self.failures: list[str] = []

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """Notes why a run has failed."""
        if record.error is not None:
            self.failures.append(f"{run.key}: {record.error}")

    def outcome(self, row: Row, run: Run, outcome: TestOutcome) -> None:
        """Keeps what came of a run."""
        config = RunConfig.model_validate(run.config)
        # Before it counts as done.
        kept = outcome_bytes(config, without_images(outcome))
        storage.write_bytes(str(self._plan.outcome_file(row, config)), kept)
        file = str(self._plan.file(row, config))
        storage.write_bytes(file, json.dumps(_result(row, config, outcome), indent=2).encode())
        storage.remove(run.outcome_file)

    def row(self, row: Row, _: FixedRuns) -> None:
        """Tells a row's figure."""
        if by_seed := _by_seed(self._plan, row):
            h, took_s = mean(s["h"] for s in by_seed), time.monotonic() - self._began_at
            self._tell(f"{row.label}: H {100 * h:.1f}, after {took_s:.0f} s")


def _table(plan: TablePlan, width: int) -> Table:
    """The measured figures, with the published ones beside them or, if it is narrow, below."""
    synthetic = " (synthetic data)" if plan.manifest.synthetic else ""
    n_seeds = len(plan.config.seeds)
    title = f"{plan.config.table}: {plan.manifest.name}{synthetic}, {n_seeds} seeds, test, %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    published = {metric for row in plan.rows for metric in row.published}
    beside = published if width >= WIDE else set()
    table.add_column("", no_wrap=True)
    for metric, head in plan.metrics.items():
        table.add_column(head, justify="right", no_wrap=True)
        if metric in beside:
            table.add_column("paper (diff.)", justify="right", no_wrap=True)
    for before, row in zip([plan.rows[0], *plan.rows], plan.rows, strict=False):
        if row.size != before.size:
            table.add_section()
        by_metric = _values(plan, row)
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


def _values(plan: TablePlan, row: Row) -> dict[str, list[float]]:
    by_seed = _by_seed(plan, row)
    return {metric: [100 * scores[metric] for scores in by_seed] for metric in plan.metrics}


def _published(row: Row, metric: str, values: Sequence[float]) -> str:
    """The paper's figure, and how much more was measured."""
    published = row.published.get(metric)
    if published is None:
        return ""
    difference = f" ({mean(values) - published:+.1f})" if values else ""
    return f"{published:.1f}{difference}"


def _by_seed(plan: TablePlan, row: Row) -> list[dict[str, float]]:
    """A row's metrics for each seed, averaged over the forget sets; empty if it was not run."""
    if plan.todo(row):
        return []
    files = [plan.file(row, config) for config in plan.configs(row)]
    runs = [json.loads(file.read_text()) for file in files]
    return [
        {
            metric: mean(run["test"][metric] for run in runs if run["seed"] == seed)
            for metric in plan.metrics
        }
        for seed in dict.fromkeys(run["seed"] for run in runs)
    ]


def _plan(config: ReproduceConfig) -> TablePlan:
    parent = Path(config.output).absolute().parent if config.output else RESULTS.absolute()
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    rows = table_rows(config.table, manifest.name, len(manifest.domains), config.blocks)
    forget = None
    if config.sizes is not None:
        rows = _of_sizes(rows, config.sizes, f"sizes = {config.sizes}", config.table)
    if config.forget is not None:
        forget = forget_sets(config.forget, manifest)
        sizes = [len(forget_domains(each, manifest.domains)) for each in forget]
        rows = _of_sizes(rows, sizes, "forget", config.table)
        # The published figures are means over all forget sets of a size.
        rows = [replace(row, published={}) for row in rows]
    rows, left_out = _enough_images(rows, manifest, config.context.data)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    default = parent / f"{config.table}-{manifest.name}-{stamp}"
    folder = Path(config.output).absolute() if config.output else default
    return TablePlan(config, manifest, tuple(rows), folder, tuple(left_out), forget)


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
                manifest.check_enough(row.shots, data.val_shots)
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
    return run_command(ReproduceConfig, reproduce, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
