"""A table that is to be run: its rows on a data set, and the runs that they are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, model_validator

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import ContextConfig
from adu.data.decoded import DataConfig
from adu.data.forget import forget_domains
from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.methods.adu import AduConfig
from adu.methods.baseline import PromptConfig
from adu.training.config import RunConfig, TrainConfig, with_recipe
from pipeline.command import merge
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Run
from pipeline.jobs.config import RESULTS, ForgetSet, ImagesPerS, check_output
from pipeline.jobs.finals import fixed_run
from pipeline.jobs.plan import absolute_context, forget_sets, open_manifest
from pipeline.names import file_name, forget_name
from pipeline.results.output import UNFINISHED, absolute_output, parent_of
from pipeline.results.tables import (
    METRICS,
    METRICS_BY_TABLE,
    TABLES,
    Row,
    compared_with,
    table_rows,
)
from pipeline.tracking.server import TrackingConfig


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
        None,
        description="domains in each forget set, of tables with a row a method; unset: 1, in the "
        "main table 1 to all but one",
    )
    rows: tuple[str, ...] | None = Field(
        None, description="the rows to run, by what their labels begin with; unset: all"
    )
    versus: str | None = Field(
        None, description="the row that others are compared with; unset: the Baseline's"
    )
    blocks: int = Field(
        12, ge=1, description="blocks of the image tower, for the depth and gaps tables"
    )
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="every row's seeds")
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: str | None = Field(
        None,
        description="folder or URL (s3://bucket/path); unset: results/TABLE-DATASET-DATE-TIME",
    )
    resume: bool = Field(False, description="go on with the table in the output")
    resume_or_start: bool = Field(
        False, description="go on with the table in the output, or start it if there is none"
    )
    dry_run: bool = Field(False, description="show what would be run, and start nothing")
    images_per_s: ImagesPerS = None
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster; unset: RAY_ADDRESS, else a local one"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        # All rows are trained alike, and not ADU's alone.
        return with_recipe(values)


@dataclass(frozen=True)
class TablePlan:
    """A table that is to be run.

    Attributes:
        config: The user's configuration.
        manifest: The images.
        rows: The table's rows.
        folder: Folder or URL where their results are kept, a file a run.
        left_out: Which rows cannot be run, and why.
        forget: The forget sets, if not all of a row's size.
    """

    config: ReproduceConfig
    manifest: Manifest
    rows: tuple[Row, ...]
    folder: str
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
            for forget in self.forget_sets(row):
                values: dict[str, Any] = {"forget": forget, "method": method}
                config = parse_config(RunConfig, values, f"row '{row.label}'")
                configs.append(config.model_copy(update={"train": train}))
        return configs

    def forget_sets(self, row: Row) -> list[tuple[str, ...]]:
        """The forget sets that a row is averaged over."""
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

    def file(self, row: Row, run: RunConfig) -> str:
        """Where the result of a run is kept."""
        return storage.join(self._results(row), f"{_stem(run)}.json")

    def outcome_file(self, row: Row, run: RunConfig) -> str:
        """Where a run's outcome is kept: checkpoint and figures, for MLflow."""
        return storage.join(self.folder, "outcomes", slug(row), f"{_stem(run)}.npz")

    def todo(self, row: Row) -> list[RunConfig]:
        """A row's configurations that have not been run."""
        done = set(storage.names_in(self._results(row)))
        return [config for config in self.configs(row) if f"{_stem(config)}.json" not in done]

    def runs(self, row: Row, context: Mapping[str, Any]) -> list[Run]:
        """What is to be run for a row, with its model and images."""
        folder = storage.join(self.folder, UNFINISHED, slug(row))
        return [
            replace(
                fixed_run(row.label, row.label, config, context, folder),
                name=f"{forget_name(config.forget)}-seed-{config.train.seed}",
            )
            for config in self.todo(row)
        ]

    def _results(self, row: Row) -> str:
        return storage.join(self.folder, "rows", slug(row))


def plan_table(config: ReproduceConfig, prepare_demo: Callable[[str], Manifest]) -> TablePlan:
    """Checks what can be checked before anything starts.

    Args:
        config: The user's configuration.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: If there is no such table, or no row of it can be run on these images.
    """
    check_output(config.output, config.tracking)
    output = absolute_output(config.output) if config.output else None
    parent = parent_of(output) if output else str(RESULTS.absolute())
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    forget, sizes = None, config.sizes
    if config.forget is not None:
        forget = forget_sets(config.forget, manifest)
        sizes = tuple(len(forget_domains(each, manifest.domains)) for each in forget)
    n_domains = len(manifest.domains)
    rows = table_rows(config.table, manifest.name, n_domains, config.blocks, sizes, config.rows)
    if config.versus is not None:
        rows = compared_with(rows, config.versus)
    if forget is not None:
        # The published figures are means over all forget sets of a size.
        rows = [replace(row, published={}) for row in rows]
    rows, left_out = enough_images(rows, manifest, config.context.data)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = output or storage.join(parent, f"{config.table}-{manifest.name}-{stamp}")
    return TablePlan(config, manifest, tuple(rows), folder, tuple(left_out), forget)


def enough_images(
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


def slug(row: Row) -> str:
    """A row's name in file names and MLflow's metrics."""
    return "".join(c if c.isalnum() else "_" for c in row.label)


def _stem(run: RunConfig) -> str:
    """A run's name in file names, within its row."""
    return f"{file_name(forget_name(run.forget))}-seed-{run.train.seed}"
