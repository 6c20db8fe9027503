"""Runs one of the paper's tables on a data set, and prints it beside the published one.

python pipeline/reproduce.py main|ablation|sensitivity|depth --manifest URL --backbone FOLDER ...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import ContextConfig
from adu.errors import UserError
from adu.manifest import Manifest
from adu.methods.adu import AduConfig
from adu.methods.baseline import PromptConfig
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.cluster import connect, leave
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, merge, run_and_exit, run_command
from pipeline.demo_data import prepare_demo
from pipeline.executor import ExecutorPool, ResourcesConfig, count_executors
from pipeline.finals import FinalRun, FinalRunFailedError, run_finals
from pipeline.interrupt import Interrupt
from pipeline.output import open_output
from pipeline.plan import RESULTS, absolute_context, open_manifest, study_name
from pipeline.progress import quiet_ray
from pipeline.session import SESSION
from pipeline.tables import TABLES, Row, table_rows

EXIT_FAILED = 1

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.backbone.name": "backbone",
    "train.epochs": "epochs",
}

METRICS = ("h", "mem", "for")


class ReproduceConfig(StrictModel):
    """Run one of the paper's tables: fixed configurations on every forget set, with every seed."""

    table: str = Field(description=f"one of {', '.join(TABLES)}")
    context: ContextConfig = ContextConfig()
    method: AduConfig = Field(AduConfig(), description="ADU's options, where a row sets no other")
    train: TrainConfig = TrainConfig()
    sizes: tuple[int, ...] | None = Field(
        None, description="sizes of forget sets in the main table; unset: 1 to all but one"
    )
    blocks: int = Field(12, ge=1, description="blocks of the image tower, for the depth table")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="every row's seeds")
    resources: ResourcesConfig = ResourcesConfig()
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
        folder: Where their results are kept, a file a row.
    """

    config: ReproduceConfig
    manifest: Manifest
    rows: tuple[Row, ...]
    folder: Path

    def runs(self, row: Row) -> list[FinalRun]:
        """A row's runs, seed by seed."""
        method = self._method(row)
        # Without anything to train, every seed is the same.
        seeds = self.config.seeds if row.method["name"] != "zero_shot" else self.config.seeds[:1]
        runs = []
        for seed in seeds:
            train = self.config.train.model_copy(update={"seed": seed})
            for forget in row.forget_sets(self.manifest.domains):
                values: dict[str, Any] = {"forget": forget, "method": method}
                run = parse_config(RunConfig, values, f"row '{row.label}'")
                runs.append(FinalRun(row.label, run.model_copy(update={"train": train})))
        return runs

    def _method(self, row: Row) -> Mapping[str, Any]:
        """A row's method: ADU and the Baseline have the user's prompts."""
        given = self.config.method.model_dump(mode="json", by_alias=True)
        if row.method["name"] == "baseline":
            given = {name: given[name] for name in PromptConfig.model_fields}
        elif row.method["name"] != "adu":
            given = {}
        return merge(given, row.method)

    def file(self, row: Row) -> Path:
        """Where a finished row is kept."""
        name = "".join(c if c.isalnum() else "_" for c in row.label)
        return self.folder / "rows" / f"{name}.json"


def reproduce(config: ReproduceConfig) -> int:
    """Runs a table as far as it has not been run; returns the exit code."""
    job = _job(config)
    for row in job.rows:
        job.runs(row)  # a wrong option is told before anything starts
    identity = config.model_dump(
        mode="json", by_alias=True, exclude={"output", "resume", "address", "resources"}
    )
    identity["manifest_digest"] = job.manifest.digest
    output = open_output(job.folder, identity, resume=config.resume)
    started_at = time.monotonic()
    with Interrupt() as interrupt, quiet_ray(output.ray_log) as console:
        try:
            code = _run(job, interrupt, console)
        except UserError:
            output.discard()
            raise
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        finally:
            leave()
        console.print(_table(job))
        console.print(f"{time.monotonic() - started_at:.0f} s, results in {job.folder}")
        return code


def _run(job: Job, interrupt: Interrupt, console: Console) -> int:
    todo = [row for row in job.rows if not job.file(row).exists()]
    if not todo:
        return EXIT_OK
    cluster = connect(job.config.address)
    interrupt.install()
    n_executors = count_executors(job.config.resources, cluster.nodes)
    context = absolute_context(job.config.context, job.manifest).model_dump(mode="json")
    pool = ExecutorPool(SESSION, context, job.config.resources, n_executors)
    code = EXIT_OK
    try:
        pool.start()
        console.print(f"starting {n_executors} executors", highlight=False)
        pool.wait_ready()
        with interrupt.graceful(pool.interrupt):
            for row in todo:
                try:
                    if not _run_row(job, row, pool, interrupt, console):
                        return EXIT_INTERRUPTED
                except FinalRunFailedError as error:
                    console.print(f"failed    {error}", highlight=False, soft_wrap=True)
                    code = EXIT_FAILED
        return code
    finally:
        pool.close()


def _run_row(
    job: Job, row: Row, pool: ExecutorPool, interrupt: Interrupt, console: Console
) -> bool:
    """Runs a row and keeps its results; returns whether it came to its end."""
    started_at = time.monotonic()
    runs = job.runs(row)
    outcomes = run_finals(row.label, runs, pool.executors, interrupt.stop, _ignore_epoch)
    if outcomes is None:
        return False
    results = [
        {
            "forget": study_name(final.run.forget),
            "seed": final.run.train.seed,
            "test": outcome.test.scores.as_dict(),
            "accuracy_by_domain": outcome.test.scores.accuracy_by_domain,
        }
        for final, outcome in zip(runs, outcomes, strict=True)
    ]
    wall_s = time.monotonic() - started_at
    record = {"row": row.label, "wall_s": wall_s, "runs": results}
    storage.write_bytes(str(job.file(row)), json.dumps(record, indent=2).encode())
    h = mean(result["test"]["h"] for result in results)  # type: ignore[index]
    console.print(f"{row.label}: H {100 * h:.1f}, {wall_s:.0f} s", highlight=False)
    return True


def _ignore_epoch(_: FinalRun, __: EpochReport) -> None:
    """A table shows final results only."""


def _table(job: Job) -> Table:
    synthetic = " (synthetic data)" if job.manifest.synthetic else ""
    n_seeds = len(job.config.seeds)
    title = f"{job.config.table}: {job.manifest.name}{synthetic}, {n_seeds} seeds, test, %"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    has_published = any(row.published[0] is not None for row in job.rows)
    for name in ("H", "Mem", "For"):
        table.add_column(name, justify="right")
        if has_published:
            table.add_column("paper", justify="right")
            table.add_column("diff.", justify="right")
    for row in job.rows:
        table.add_row(row.label, *_cells(job, row, has_published))
    return table


def _cells(job: Job, row: Row, has_published: bool) -> list[str]:
    by_seed = _by_seed(job, row)
    cells: list[str] = []
    for metric, published in zip(METRICS, row.published, strict=True):
        values = [100 * scores[metric] for scores in by_seed]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f}{spread}" if values else "-")
        if has_published:
            cells.append("" if published is None else f"{published:.1f}")
            both = values and published is not None
            cells.append(f"{mean(values) - published:+.1f}" if both else "")  # type: ignore[operator]
    return cells


def _by_seed(job: Job, row: Row) -> list[dict[str, float]]:
    """A row's metrics for each seed, averaged over the forget sets; empty if it was not run."""
    file = job.file(row)
    if not file.exists():
        return []
    runs = json.loads(file.read_text())["runs"]
    return [
        {m: mean(run["test"][m] for run in runs if run["seed"] == seed) for m in METRICS}
        for seed in dict.fromkeys(run["seed"] for run in runs)
    ]


def _job(config: ReproduceConfig) -> Job:
    parent = Path(config.output).absolute().parent if config.output else RESULTS.absolute()
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    rows = table_rows(config.table, manifest.name, len(manifest.domains), config.blocks)
    known = sorted({row.size for row in rows})
    if config.sizes is not None:
        rows = [row for row in rows if row.size in config.sizes]
    if not rows:
        raise UserError(
            f"sizes = {config.sizes}: the {config.table} table has no such forget sets "
            f"(allowed: {', '.join(map(str, known))})"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    default = parent / f"{config.table}-{manifest.name}-{stamp}"
    folder = Path(config.output).absolute() if config.output else default
    return Job(config, manifest, tuple(rows), folder)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--table", *arguments]
    return run_command(ReproduceConfig, reproduce, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
