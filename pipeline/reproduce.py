"""Runs one of the paper's tables on a data set, and prints it beside the published one.

python pipeline/reproduce.py TABLE --manifest URL --backbone FOLDER ...

TABLE is one of the paper's, main, ablation, sensitivity, shots, depth and domain-accuracy, or
gaps: each option that the paper leaves open.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import ray
from rich import box
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    plain_console,
    run_and_exit,
    run_command,
)
from pipeline.demo_data import prepare_demo
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes, without_images
from pipeline.executors.run import Run
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.plan import with_split
from pipeline.jobs.table_plan import ReproduceConfig, TablePlan, plan_table
from pipeline.jobs.table_size import protocol, show_table_plan
from pipeline.names import forget_name
from pipeline.patience import patiently
from pipeline.results.comparison import Difference
from pipeline.results.copies import OutputLostError
from pipeline.results.output import Output, open_output
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import (
    Row,
    mean_and_spread,
)
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import FixedRuns
from pipeline.tracking.facts import Facts, facts_of, fixed_facts, write_facts
from pipeline.tracking.projection import project
from pipeline.tracking.server import check, server_of
from pipeline.tracking.truth import AtWork

# Columns of a terminal that has room for the published figures beside the measured ones.
WIDE = 100

# Says what the last column holds.
VERSUS = "vs {}: points of H, run by run, and half of the 95 % interval; else ±: sd over seeds"

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.data.allow_uri": "allow-uri",
    "context.backbone.name": "backbone",
    "train.epochs": "epochs",
    "tracking.uri": "tracking-uri",
    "resources.workers-per-trial": "workers-per-trial",
    "resources.cpus-per-worker": "cpus-per-worker",
    "resources.gpus-per-worker": "gpus-per-worker",
}


def reproduce(config: ReproduceConfig) -> int:
    """Runs a table as far as it has not been run; returns the exit code."""
    plan = plan_table(config, prepare_demo)
    for row in plan.rows:
        plan.configs(row)  # a wrong option is told before anything starts
    check(config.tracking, plan.manifest.name)
    if config.dry_run:
        show_table_plan(plan, plain_console(sys.stdout))
        return EXIT_OK
    kept = {"table", "context", "method", "train", "blocks"}
    identity = config.model_dump(mode="json", by_alias=True, include=kept)
    identity["manifest_digest"] = plan.manifest.digest
    resume = config.resume or config.resume_or_start
    output = open_output(plan.folder, identity, resume=resume, or_start=config.resume_or_start)
    started_at = time.monotonic()
    with Interrupt() as interrupt, quiet_ray(output.ray_log) as console:
        try:
            code = _run(plan, output, interrupt, console)
        except UserError:
            output.discard()
            raise
        except OutputLostError as error:
            console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            return EXIT_FAILED
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        finally:
            ray.shutdown()
            output.close()
        console.print(_table(plan, console.width))
        console.print(f"{time.monotonic() - started_at:.0f} s, results in {plan.folder}")
        return code


def _run(plan: TablePlan, output: Output, interrupt: Interrupt, console: Console) -> int:
    """Runs what has not been run; returns the exit code."""

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for line in (*(f"left out   {line}" for line in plan.left_out), *protocol(plan)):
        tell(line)
    # Executors hold the images: rows with the same shots follow each other.
    todo = sorted((row for row in plan.rows if plan.todo(row)), key=lambda row: row.shots or 0)
    if not todo:
        return EXIT_OK
    log = _Log(plan, output, tell)
    job = Job(plan.config.address, plan.config.resources, interrupt, [log])
    tell(f"starting {job.n_executors} executor{'s' * (job.n_executors != 1)}")
    contexts = {
        shots: with_split(plan.context(shots), plan.manifest, plan.folder).model_dump(mode="json")
        for shots in dict.fromkeys(row.shots for row in todo)
    }
    for row in todo:
        runs = plan.runs(row, contexts[row.shots])
        keep = partial(log.outcome, row)
        job.queue.add_fixed(FixedRuns(row.label, runs, keep, partial(log.row, row)))
    context = contexts[todo[0].shots]
    facts = _facts(plan, output)
    write_facts(facts, output.url)
    server = server_of(plan.config.tracking, Path(plan.folder))
    projection = project(server, facts, output.url, None, AtWork(), tell)
    try:
        failure = job.run(context, [plan.configs(row)[0] for row in todo], plan.folder)
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
        (row.label, run, plan.outcome_file(row, run))
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

    def __init__(self, plan: TablePlan, output: Output, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._output = output
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
        # Nothing is written into an output that another command has.
        self._output.check()
        kept = outcome_bytes(config, without_images(outcome))
        figures = json.dumps(_result(row, config, outcome), indent=2).encode()

        def keep() -> None:
            storage.write_bytes(self._plan.outcome_file(row, config), kept)
            # With this it counts as done.
            storage.write_bytes(self._plan.file(row, config), figures)
            storage.remove(run.outcome_file)

        patiently(run.place, keep)

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
    labels = {row.label for row in plan.rows}
    compared = [row.base for row in plan.rows if row.base in labels]
    if compared:
        name = compared[0].split(",")[0]
        table.add_column(f"vs {name}", justify="right", no_wrap=True)
        table.caption, table.caption_justify = VERSUS.format(name), "left"
    for before, row in zip([plan.rows[0], *plan.rows], plan.rows, strict=False):
        if row.size != before.size:
            table.add_section()
        by_metric = _values(plan, row)
        cells = []
        for metric, values in by_metric.items():
            cells.append(mean_and_spread(values) if values else "-")
            if metric in beside:
                cells.append(_published(row, metric, values))
        if compared:
            cells.append(_apart(plan, [row]))
        table.add_row(row.label, *cells)
        if row.published and not beside:
            below = (_published(row, metric, values) for metric, values in by_metric.items())
            table.add_row("  paper (diff.)", *below, style="dim")
    if compared:
        _add_all_sizes(table, plan)
    return table


def _add_all_sizes(table: Table, plan: TablePlan) -> None:
    """How far rows are apart over the forget sets of all sizes."""
    by_name: dict[str, list[Row]] = {}
    for row in plan.rows:
        by_name.setdefault(row.label.partition(", ")[0], []).append(row)
    table.add_section()
    for name, rows in by_name.items():
        if len({row.size for row in rows}) > 1 and (apart := _apart(plan, rows)):
            blank = [""] * (len(table.columns) - 2)
            table.add_row(f"{name}, all sets", *blank, apart)


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


def _apart(plan: TablePlan, rows: Sequence[Row]) -> str:
    """By how many points of H some rows are ahead of others, and half of Student's interval.

    Run by run of one forget set and seed, which have the images, and mostly the batches, in common.
    """
    by_label = {row.label: row for row in plan.rows}
    gains = [_gains(plan, row, by_label[row.base]) for row in rows if row.base in by_label]
    if not all(gains):
        # Not of some of the rows alone, as long as others are to come.
        return "-"
    if not gains:
        return ""
    gain = Difference(tuple(itertools.chain.from_iterable(gains)))
    if gain.interval is None:
        return f"{gain.mean:+.1f}"
    low, high = gain.interval
    return f"{gain.mean:+.1f} ± {(high - low) / 2:.1f}"


def _gains(plan: TablePlan, row: Row, base: Row) -> list[float]:
    """Points of H by which each of a row's runs is ahead of the other row's."""
    ours, theirs = (
        {(run["forget"], run["seed"]): 100 * run["test"]["h"] for run in _runs(plan, each)}
        for each in (row, base)
    )
    return [h - theirs[pair] for pair, h in ours.items() if pair in theirs]


def _runs(plan: TablePlan, row: Row) -> list[dict[str, Any]]:
    """What came of a row's runs; empty if one of them was not run."""
    if plan.todo(row):
        return []
    files = [plan.file(row, config) for config in plan.configs(row)]
    return [json.loads(storage.read_bytes(file)) for file in files]


def _by_seed(plan: TablePlan, row: Row) -> list[dict[str, float]]:
    """A row's metrics for each seed, averaged over the forget sets; empty if it was not run."""
    runs = _runs(plan, row)
    return [
        {
            metric: mean(run["test"][metric] for run in runs if run["seed"] == seed)
            for metric in plan.metrics
        }
        for seed in dict.fromkeys(run["seed"] for run in runs)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--table", *arguments]
    return run_command(ReproduceConfig, reproduce, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
