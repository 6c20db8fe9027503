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

from adu.config import StrictModel
from adu.context import ContextConfig, check_forget_set
from adu.data import DataConfig, select_images
from adu.errors import UserError
from adu.manifest import Manifest, load_manifest
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.reading import check_images
from adu.trainer import RunConfig, TrainConfig
from pipeline.executor import ResourcesConfig
from pipeline.output import STUDIES, Output, open_output, unique_name
from pipeline.records import read_study_record
from pipeline.samplers import shown
from pipeline.searcher import Study, StudyConfig
from pipeline.space import Space, SpaceConfig, check_space, configure, examples

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
    output: str | None = Field(None, description="folder; unset: results/NAME-DATE-TIME")
    resume: bool = Field(False, description="go on with the search in the output folder")
    dry_run: bool = Field(False, description="show what would be searched, and start nothing")
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
        folder: The output folder.
    """

    config: SearchConfig
    name: str
    manifest: Manifest
    context: ContextConfig
    forget_sets: tuple[tuple[str, ...], ...]
    warm_start: tuple[dict[str, Any], ...]
    folder: Path

    def open_output(self) -> Output:
        """Creates the output folder, or opens the one to resume.

        Raises:
            UserError: If it cannot be written or holds another search.
        """
        return open_output(self.folder, self._identity(), resume=self.config.resume)

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
            f"{unique_name(output.folder)}/{name}" if shared else name,
            output.savepoints(name),
            first,
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
        told = {"output", "resume", "dry_run", "address", "resources", "tracking"}
        values = self.config.model_dump(mode="json", by_alias=True, exclude=told)
        if self.config.search.storage is not None:
            values["search"]["storage"] = shown(self.config.search.storage)
        how = {"data": {"read_threads", "cache_gib"}}
        values["context"] = self.context.model_dump(mode="json", exclude=how)
        return {**values, "forget": self.forget_sets, "manifest_digest": self.manifest.digest}


def make_plan(config: SearchConfig, prepare_demo: Callable[[Path], Manifest]) -> Plan:
    """Checks a configuration against its data.

    Args:
        config: The user's configuration.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: For anything that would keep the search from running.
    """
    parent = Path(config.output).absolute().parent if config.output else RESULTS.absolute()
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    name = config.name or manifest.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output).absolute() if config.output else parent / f"{name}-{stamp}"
    for domains in config.overrides:
        check_forget_set(tuple(domains.split("+")), manifest.domains)
    plan = Plan(
        config,
        name,
        manifest,
        absolute_context(config.context, manifest),
        _forget_sets(config.forget, manifest.domains),
        _warm_start(config.search.warm_start),
        folder,
    )
    for forget in plan.forget_sets:
        check_space(plan.space(forget), plan.base(forget))
    return plan


def open_manifest(
    data: DataConfig, parent: Path, prepare_demo: Callable[[Path], Manifest]
) -> Manifest:
    """The images that a configuration asks for, with enough of them for its shots.

    Args:
        data: Which images.
        parent: Folder in which the demo's lie, or are drawn.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: If there is no such manifest, it has too few images or they cannot be read.
    """
    is_demo = data.manifest == DEMO
    manifest = select_images(
        prepare_demo(parent / "data") if is_demo else load_manifest(data.manifest), data
    )
    manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)
    check_images(manifest)
    return manifest


def study_name(forget: Sequence[str]) -> str:
    """A forget set as a part of file names and URLs."""
    return "+".join(forget)


def _forget_sets(
    asked: ForgetSize | tuple[tuple[str, ...], ...], domains: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
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


def _warm_start(asked: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The best parameters of earlier searches, by their output folders."""
    found = []
    for folder in asked:
        if folder == SIBLINGS:
            continue
        files = sorted((Path(folder) / STUDIES).glob("*.json"))
        best = [record.best for record in map(read_study_record, files) if record.best]
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
