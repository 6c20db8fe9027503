"""What an output says of itself, so that it can be shown in MLflow at any later time.

Figures are in Optuna's storage and in the outcome files; ``tracking.json`` says what they are of.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from mlflow.tracking.context.registry import resolve_tags

from adu import storage
from adu.config import StrictModel, parse_config
from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.names import forget_name
from pipeline.studies.records import METHOD_LABELS, stage_label
from pipeline.tracking.server import without_secrets

FILE = "tracking.json"


class StudyFacts(StrictModel):
    """A study of a search.

    Attributes:
        forget: The forget domains.
        stored_name: The study's name in Optuna's storage.
        record: The file that it has once it is finished.
        folder: Its folder: pictures, chosen configurations.
        outcomes: The folder of its final runs' outcomes.
    """

    forget: tuple[str, ...]
    stored_name: str
    record: str
    folder: str
    outcomes: str

    @property
    def name(self) -> str:
        """Unique in the search."""
        return forget_name(self.forget)


class FixedFacts(StrictModel):
    """A run whose configuration was known beforehand.

    Attributes:
        stage: What it stands for: a table's row, a method.
        config: Its configuration; the seed is part of it.
        outcome: The file in which it leaves what came of it.
    """

    stage: str
    config: RunConfig
    outcome: str

    @property
    def label(self) -> str:
        """The stage as a person reads it."""
        method = self.config.method.name
        return METHOD_LABELS.get(
            self.stage, stage_label(self.stage, METHOD_LABELS.get(method, method))
        )


class Facts(StrictModel):
    """An output: a search, a table, or what ``train.py`` has trained. Files are relative to it.

    Attributes:
        id: A UUID.
        kind: The command.
        name: The search's, or what its one parent run is called.
        data_set: The manifest's name.
        digest: The manifest's.
        manifest: Its URL.
        synthetic: Whether a program has made the images up.
        domains: Of the data set.
        classes: Of the data set.
        backbone: The model.
        method: What is searched or trained.
        tags: Put on the parent runs; they may change when the output is resumed.
        params: What all runs share.
        origin: Who ran which code: put on runs when they are created.
        studies: Of a search.
        fixed: Of a table or ``train.py``.
        min_mem: The least Mem that a model must have to be a study's best.
        register_models: Whether the best model of each study is registered.
        in_database: Whether Optuna's studies are in a database and not in the output.
    """

    id: str
    kind: Literal["search", "table", "train"]
    name: str
    data_set: str
    digest: str
    manifest: str
    synthetic: bool
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    backbone: str
    method: str
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    origin: dict[str, str] = {}
    studies: tuple[StudyFacts, ...] = ()
    fixed: tuple[FixedFacts, ...] = ()
    min_mem: float | None = None
    register_models: bool = False
    in_database: bool = False


def facts_of(
    manifest: Manifest, search_id: str, kind: Literal["search", "table", "train"], **rest: Any
) -> Facts:
    """The facts of an output; see `Facts` for the rest."""
    return Facts(
        id=search_id,
        kind=kind,
        data_set=manifest.name,
        digest=manifest.digest,
        manifest=without_secrets(manifest.url),
        synthetic=manifest.synthetic,
        domains=manifest.domains,
        classes=manifest.classes,
        origin=origin(),
        **rest,
    )


def write_facts(facts: Facts, output: str) -> None:
    """Writes an output's facts into it."""
    data = facts.model_dump_json(indent=2, by_alias=True).encode()
    storage.write_bytes(storage.join(output, FILE), data)


def read_facts(output: str) -> Facts:
    """Reads what `write_facts` has written.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    file = storage.join(output, FILE)
    if not storage.exists(file):
        raise UserError(f"output {output}: has no {FILE}: no search, table or training of ours")
    try:
        values = json.loads(storage.read_bytes(file))
    except ValueError as error:
        raise UserError(f"{file}: is damaged: {error}") from error
    return parse_config(Facts, values, file)


def fixed_facts(runs: Sequence[tuple[str, RunConfig, str]], output: str) -> tuple[FixedFacts, ...]:
    """Facts of runs that are known beforehand.

    Args:
        runs: Stage, configuration and outcome file of each.
        output: Folder or URL that the files lie in.
    """
    return tuple(
        FixedFacts(stage=stage, config=config, outcome=file.removeprefix(f"{output}/"))
        for stage, config, file in runs
    )


def origin() -> dict[str, str]:
    """Who runs which version of the code, as tags that MLflow's UI has columns for.

    An image has no Git: the commit that it was built from stands in `ADU_COMMIT`.
    """
    root = Path(__file__).parents[2]
    tags = {**resolve_tags(), "adu_search_version": version("adu-search")}
    if built := os.environ.get("ADU_COMMIT"):
        tags["mlflow.source.git.commit"] = built
        return {name: without_secrets(str(value)) for name, value in tags.items()}
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            tags["mlflow.source.git.commit"] = commit.stdout.strip()
    return {name: without_secrets(str(value)) for name, value in tags.items()}
