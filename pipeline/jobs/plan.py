"""What a search is to do: its configuration, checked as far as it can be before anything starts."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from optuna.storages import BaseStorage
from pydantic import BeforeValidator, Field

from adu import storage
from adu.config import StrictModel
from adu.context import ContextConfig, check_forget_set
from adu.data import DataConfig, select_images
from adu.errors import UserError
from adu.manifest import Manifest, load_manifest
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.reading import check_images
from adu.trainer import RunConfig, TrainConfig
from pipeline.executors.pool import ResourcesConfig
from pipeline.results.output import (
    STUDIES,
    Output,
    absolute_output,
    open_output,
    parent_of,
    unique_name,
)
from pipeline.studies.records import read_study_record
from pipeline.studies.samplers import shown
from pipeline.studies.searcher import Study, StudyConfig
from pipeline.studies.space import Space, SpaceConfig, check_space, configure, examples

DEMO = "demo"

# In search.warm_start: the studies of the same search.
SIBLINGS = "siblings"

RESULTS = Path("results")


def _split_domains(value: Any) -> Any:
    """One forget set on the command line: ``cartoon+photo`` or ``cartoon,photo``."""
    return tuple(value.replace(",", "+").split("+")) if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


ForgetSet = Annotated[tuple[str, ...], BeforeValidator(_split_domains)]


class ForgetSize(StrictModel):
    """All forget sets of some sizes."""

    size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_many)] = Field(
        (1,), min_length=1, description="domains in each forget set; several sizes: [1, 2]"
    )


class FinalConfig(StrictModel):
    """The final runs, on which the test split is read."""

    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, description="each trained configuration is run once with each"
    )


class TrackingConfig(StrictModel):
    """Where runs are tracked."""

    uri: str | None = Field(
        None, description="MLflow server or database; unset: mlflow.db beside the output"
    )
    register_models: bool = Field(
        True, description="whether a search registers the best model of each study"
    )


class SearchConfig(StrictModel):
    """Search for what makes a CLIP model forget whole domains and keep the others.

    For each forget set: search with Ray Tune and Optuna on validation images, then compare the
    best trial, the paper's defaults, the Baseline and the untouched model on test images.
    """

    name: str | None = Field(None, description="name of the search; unset: the manifest's")
    context: ContextConfig = ContextConfig()
    forget: ForgetSize | tuple[ForgetSet, ...] = Field(
        ForgetSize(), description="the forget sets: each domain,domain,... or all of some sizes"
    )
    method: MethodConfig = AduConfig()
    train: TrainConfig = TrainConfig()
    space: SpaceConfig = Field(
        min_length=1, description="what is searched: option path to range and default"
    )
    overrides: dict[str, SpaceConfig] = Field(
        {},
        description="changes of the space where a domain is forgotten, or for one forget set "
        "(domain+domain)",
    )
    search: StudyConfig = StudyConfig()
    final: FinalConfig = FinalConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: str | None = Field(
        None, description="folder or URL (s3://bucket/path); unset: results/NAME-DATE-TIME"
    )
    resume: bool = Field(False, description="go on with the search in the output")
    resume_or_start: bool = Field(
        False, description="go on with the search in the output, or start it if there is none"
    )
    dry_run: bool = Field(False, description="show what would be searched, and start nothing")
    images_per_s: float | None = Field(
        None,
        gt=0,
        description="for --dry-run: training images a second of one worker, where it is to run "
        "(make bench-train measures it)",
    )
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster; unset: RAY_ADDRESS, else a local one"
    )


SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.backbone.name": "backbone",
    "search.trials": "trials",
    "search.seed": "seed",
    "search.warm_start": "warm-start",
    "train.epochs": "epochs",
    "tracking.uri": "tracking-uri",
    "resources.workers-per-trial": "workers-per-trial",
    "resources.cpus-per-worker": "cpus-per-worker",
    "resources.gpus-per-worker": "gpus-per-worker",
}


@dataclass(frozen=True)
class Plan:
    """A search that has passed all checks that need no cluster.

    Attributes:
        config: The user's configuration.
        name: The search's name.
        manifest: The images.
        context: Model and data as the workers are told, with absolute paths.
        forget_sets: One study each.
        warm_start: The best parameters of earlier searches.
        output: The output: an absolute folder or a URL.
    """

    config: SearchConfig
    name: str
    manifest: Manifest
    context: ContextConfig
    forget_sets: tuple[tuple[str, ...], ...]
    warm_start: tuple[dict[str, Any], ...]
    output: str

    def open_output(self) -> Output:
        """Creates the output, or opens the one to resume.

        Raises:
            UserError: If it cannot be written or holds another search.
        """
        config = self.config
        return open_output(
            self.output,
            self._identity(),
            resume=config.resume or config.resume_or_start,
            or_start=config.resume_or_start,
        )

    def base(self, forget: tuple[str, ...]) -> RunConfig:
        """A study's run configuration apart from what is searched."""
        return RunConfig(forget=forget, method=self.config.method, train=self.config.train)

    def space(self, forget: tuple[str, ...]) -> Space:
        """What is searched for a forget set: overrides of its domains, then its own, win."""
        space = dict(self.config.space)
        for name in (*forget, study_name(forget)):
            space |= self.config.overrides.get(name, {})
        return space

    def study(
        self,
        forget: tuple[str, ...],
        output: Output,
        storage: BaseStorage,
        siblings: Sequence[Mapping[str, Any]],
    ) -> Study:
        """The study of a forget set.

        Args:
            forget: The forget domains.
            output: Where the search keeps what it finds.
            storage: Optuna's.
            siblings: The best parameters of the search's studies that have ended.
        """
        name = study_name(forget)
        shared = self.config.search.storage is not None
        first = [*self.warm_start, *(siblings if SIBLINGS in self.config.search.warm_start else ())]
        return Study(
            name,
            self.base(forget),
            self.space(forget),
            self.config.search,
            storage,
            # Searches may share a database, but not a file in the output folder.
            f"{unique_name(output.url)}/{name}" if shared else name,
            output.savepoints(name),
            first,
            output.commit,
        )

    def probes(self) -> list[RunConfig]:
        """Runs at the ends of every range, to see whether the model takes them."""
        runs = [
            configure(self.base(forget), values)
            for forget in self.forget_sets
            for values in examples(self.space(forget))
        ]
        # What a model takes does not depend on the domains to forget.
        return list({run.model_dump_json(exclude={"forget"}): run for run in runs}.values())

    def _identity(self) -> dict[str, Any]:
        # Where and on how much it runs may change between a start and a resume.
        told = {"output", "resume", "resume_or_start", "dry_run", "images_per_s"}
        told |= {"address", "resources", "tracking"}
        values = self.config.model_dump(mode="json", by_alias=True, exclude=told)
        if self.config.search.storage is not None:
            values["search"]["storage"] = shown(self.config.search.storage)
        how = {"data": {"read_threads", "cache_gib"}}
        values["context"] = self.context.model_dump(mode="json", exclude=how)
        return {**values, "forget": self.forget_sets, "manifest_digest": self.manifest.digest}


def make_plan(config: SearchConfig, prepare_demo: Callable[[str], Manifest]) -> Plan:
    """Checks a configuration against its data.

    Args:
        config: The user's configuration.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: For anything that would keep the search from running.
    """
    _check_tracking(config)
    output = absolute_output(config.output) if config.output else None
    parent = parent_of(output) if output else str(RESULTS.absolute())
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    name = config.name or manifest.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for domains in config.overrides:
        check_forget_set(tuple(domains.split("+")), manifest.domains)
    plan = Plan(
        config,
        name,
        manifest,
        absolute_context(config.context, manifest),
        forget_sets(config.forget, manifest.domains),
        _warm_start(config.search.warm_start),
        output or storage.join(parent, f"{name}-{stamp}"),
    )
    for forget in plan.forget_sets:
        check_space(plan.space(forget), plan.base(forget))
    return plan


def open_manifest(
    data: DataConfig, parent: str | Path, prepare_demo: Callable[[str], Manifest]
) -> Manifest:
    """The images that a configuration asks for, with enough of them for its shots.

    Args:
        data: Which images.
        parent: Folder or URL in which the demo's lie, or are drawn.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: If there is no such manifest, it has too few images or they cannot be read.
    """
    is_demo = data.manifest == DEMO
    place = storage.join(str(parent), "data")
    manifest = select_images(prepare_demo(place) if is_demo else load_manifest(data.manifest), data)
    manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)
    check_images(manifest)
    return manifest


def study_name(forget: Sequence[str]) -> str:
    """A forget set as a part of file names and URLs."""
    return "+".join(forget)


def forget_sets(
    asked: ForgetSize | tuple[tuple[str, ...], ...], domains: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    """The forget sets that are asked for, their domains in the data set's order.

    Raises:
        UserError: If there are none, or one that cannot be forgotten, or one twice.
    """
    if isinstance(asked, ForgetSize):
        for size in asked.size:
            if size >= len(domains):
                raise UserError(
                    f"forget.size = {size}: must leave a domain to retain "
                    f"(domains: {', '.join(domains)})"
                )
        return tuple(
            forget
            for size in dict.fromkeys(asked.size)
            for forget in itertools.combinations(domains, size)
        )
    for forget in asked:
        check_forget_set(forget, domains)
    sets = [tuple(domain for domain in domains if domain in forget) for forget in asked]
    if not sets or len(set(sets)) < len(sets):
        raise UserError("forget: must hold at least one forget set, and none twice")
    return tuple(sets)


def _check_tracking(config: SearchConfig) -> None:
    if config.output and not storage.is_local(config.output) and config.tracking.uri is None:
        raise UserError(
            "tracking.uri: must be set where the output is a URL (MLflow's own SQLite file needs "
            "a disk that stays)"
        )


def _warm_start(asked: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The best parameters of earlier searches, by their outputs."""
    found = []
    for folder in asked:
        if folder == SIBLINGS:
            continue
        place = storage.join(absolute_output(folder), STUDIES)
        files = [name for name in storage.names_in(place) if name.endswith(".json")]
        records = [read_study_record(storage.join(place, name)) for name in files]
        best = [record.best for record in records if record.best]
        if not best:
            raise UserError(
                f"search.warm_start {folder}: is neither the output folder of a search with a "
                f"finished study, nor '{SIBLINGS}'"
            )
        found += [trial.params for trial in best]
    return tuple(found)


def absolute_context(context: ContextConfig, manifest: Manifest) -> ContextConfig:
    """Local paths made absolute: workers may stand in another folder."""
    data = context.data.model_copy(update={"manifest": _absolute_path(manifest.url)})
    name = _absolute_path(context.backbone.name)
    return ContextConfig(backbone=context.backbone.model_copy(update={"name": name}), data=data)


def _absolute_path(name: str) -> str:
    # Only what exists: 'demo' and open_clip's names are no paths.
    is_path = name != DEMO and "://" not in name and os.path.exists(name)  # noqa: PTH110
    return os.path.abspath(name) if is_path else name  # noqa: PTH100
