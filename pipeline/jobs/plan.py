"""What a search is to do: its configuration, checked as far as it can be before anything starts."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from adu import storage
from adu.context import ContextConfig
from adu.data.decoded import DataConfig, select_images
from adu.data.forget import check_forget_set
from adu.data.manifest import FewShotSplit, Manifest, load_manifest
from adu.data.reading import check_images
from adu.data.split_file import write_split
from adu.errors import UserError
from adu.methods.adu import AduConfig
from adu.training.config import RunConfig
from pipeline.jobs.config import (
    COMPARED,
    DEMO,
    RESULTS,
    SIBLINGS,
    ForgetSize,
    SearchConfig,
    check_output,
)
from pipeline.names import forget_name, parse_forget_name
from pipeline.results.output import STUDIES, Output, absolute_output, open_output, parent_of
from pipeline.studies.records import StudyRecord, read_study_record
from pipeline.studies.rules import deciding_epochs, make_rule
from pipeline.studies.samplers import GRID, check_sampler
from pipeline.studies.space import Space, check_space, configure, examples, grid
from pipeline.studies.study import StudySpec

# The recipe that is compared with, whatever a search starts from.
PAPER = "paper"

# In what a study has come to its end by: its proof.
PROVE = "prove"


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

    def paper(self, forget: tuple[str, ...]) -> RunConfig | None:
        """The paper's own configuration, where the search starts from another recipe's."""
        method, train = self.config.method, self.config.train
        if not isinstance(method, AduConfig) or method.recipe in (None, PAPER):
            return None
        # As long and on the same batches as all others; the rest as in the paper.
        shared = {name: getattr(train, name) for name in ("epochs", "batch_size", "crop_scale_min")}
        # A single epoch, as in a smoke test, has no room for its warm-up.
        shared |= {"warmup_epochs": 0} if train.epochs == 1 else {}
        return RunConfig.model_validate(
            {"forget": forget, "method": {"name": "adu", "recipe": PAPER}, "train": shared}
        )

    def space(self, forget: tuple[str, ...]) -> Space:
        """What is searched for a forget set: overrides of its domains, then its own, win."""
        space = dict(self.config.space)
        for name in (*(forget_name([domain]) for domain in forget), forget_name(forget)):
            space |= self.config.overrides.get(name, {})
        return space

    def study(
        self,
        forget: tuple[str, ...],
        output: Output,
        storage: BaseStorage,
        siblings: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> StudySpec:
        """The study of a forget set.

        Args:
            forget: The forget domains.
            output: Where the search keeps what it finds.
            storage: Optuna's.
            siblings: Gives the best parameters of the search's studies that have ended.
        """
        name = forget_name(forget)
        config = self.config.search

        def first() -> Sequence[Mapping[str, Any]]:
            return [*self.warm_start, *(siblings() if SIBLINGS in config.warm_start else ())]

        return StudySpec(
            name,
            self.base(forget),
            self.space(forget),
            config,
            self.context.model_dump(mode="json"),
            storage,
            self.stored_name(name, output),
            output.trials(name),
            first,
            output.commit,
            deciding_epochs(config, self.config.train.epochs),
        )

    def stored_name(self, study: str, output: Output) -> str:
        """A study's name in Optuna's storage."""
        # Searches may share a database, but not a file in the output folder.
        return study if self.config.search.storage is None else f"{output.search_id}/{study}"

    @property
    def n_finals(self) -> int:
        """Final runs of a study that train."""
        final, paper = self.config.final, self.paper(self.forget_sets[0])
        return (1 + len(final.stages(paper is None))) * len(final.seeds) + 1

    def few_shot_split(self) -> FewShotSplit:
        """The images that all runs learn from and are chosen on."""
        data = self.config.context.data
        return self.manifest.few_shot_split(data.shots, data.val_shots, data.split_seed)

    def probes(self) -> list[RunConfig]:
        """Runs at the ends of every range, to see whether the model takes them."""
        return [
            configure(self.base(forget), values)
            for forget in self.forget_sets
            for values in examples(self.space(forget))
        ]

    def asked(self) -> dict[str, Any]:
        """What a study comes to its end by; a search may be resumed with more."""
        budgets = ("trials", "wall_time_s", "target_h", "patience", "race", "tries")
        values = self.config.search.model_dump(include=set(budgets))
        values["seeds"] = list(self.config.final.seeds)
        # Only where it is not everything, as it was before there was a choice.
        if (compare := sorted(self.config.final.compare)) != sorted(COMPARED):
            values["compare"] = compare
        if budget := self.config.budget.model_dump(exclude_none=True):
            values["budget"] = budget
        if self.config.prove is not None:
            values[PROVE] = self.config.prove.model_dump(mode="json")
        return values

    def has_ended(self, record: StudyRecord) -> bool:
        """Whether a study has come to all that it is to come to; a proof more does no harm."""
        asked, known = self.asked(), dict(record.asked)
        if PROVE not in asked:
            known.pop(PROVE, None)
        return record.complete and known == asked

    def _identity(self) -> dict[str, Any]:
        """What makes trials comparable: all else may change between a start and a resumption."""
        kept = {"name", "method", "train", "space", "overrides"}
        values = self.config.model_dump(mode="json", by_alias=True, include=kept)
        search = self.config.search
        values["search"] = {"objective": search.objective}
        # Only where they are asked for: a search that was begun before there were such goes on.
        limits = {"min_mem", "min_mem_each", "max_forget_accuracy"}
        values["search"] |= search.model_dump(include=limits, exclude_none=True)
        how: dict[str, Any] = {
            "data": {"read_threads", "cache_gib", "disk_gib", "quick_val_shots"},
            "few_shot_file": True,
        }
        values["context"] = self.context.model_dump(mode="json", exclude=how)
        return {**values, "manifest_digest": self.manifest.digest}


def make_plan(config: SearchConfig, prepare_demo: Callable[[str], Manifest]) -> Plan:
    """Checks a configuration against its data.

    Args:
        config: The user's configuration.
        prepare_demo: Gives the demo's manifest, written under a folder if need be.

    Raises:
        UserError: For anything that would keep the search from running.
    """
    check_output(config.output, config.tracking)
    output = absolute_output(config.output) if config.output else None
    parent = parent_of(output) if output else str(RESULTS.absolute())
    manifest = open_manifest(config.context.data, parent, prepare_demo)
    name = config.name or manifest.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for domains in config.overrides:
        check_forget_set(parse_forget_name(domains), manifest.classes, manifest.domains)
    plan = Plan(
        config,
        name,
        manifest,
        absolute_context(config.context, manifest),
        forget_sets(config.forget, manifest),
        _warm_start(config.search.warm_start),
        output or storage.join(parent, f"{name}-{stamp}"),
    )
    make_rule(config.search, config.train.epochs)
    n_objectives = config.search.goal.n_objectives
    for forget in plan.forget_sets:
        space, base = plan.space(forget), plan.base(forget)
        check_space(space, base)
        check_sampler(config.search.sampler, space, base, n_objectives)
        _check_grid(plan, forget)
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
    manifest.check_enough(data.shots, data.val_shots)
    check_images(manifest)
    return manifest


def forget_sets(
    asked: ForgetSize | tuple[tuple[str, ...], ...], manifest: Manifest
) -> tuple[tuple[str, ...], ...]:
    """The forget sets that are asked for, their domains in the data set's order, then their pairs.

    Raises:
        UserError: If there are none, or one that cannot be forgotten, or one twice.
    """
    domains = manifest.domains
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
        check_forget_set(forget, manifest.classes, domains)
    order = [*domains, *sorted(entry for forget in asked for entry in forget)]
    sets = [tuple(sorted(forget, key=order.index)) for forget in asked]
    if not sets or len(set(sets)) < len(sets):
        raise UserError("forget: must hold at least one forget set, and none twice")
    return tuple(sets)


def _check_grid(plan: Plan, forget: tuple[str, ...]) -> None:
    search = plan.config.search
    if search.sampler != GRID:
        return
    n_points = sum(1 for _ in grid(plan.space(forget), plan.base(forget), search.grid_points))
    if n_points > search.trials:
        raise UserError(
            f"search.trials = {search.trials}: the grid of {forget_name(forget)} has {n_points} "
            "points (raise search.trials, or lower search.grid_points)"
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


def with_split(context: ContextConfig, manifest: Manifest, folder: str) -> ContextConfig:
    """Draws the few-shot split, once for all workers, and says in which file they find it.

    Args:
        context: What the workers are told.
        manifest: The classes and domains that it asks for.
        folder: Folder or URL of the job's output.

    Raises:
        UserError: If a domain and class has too few images, or the file cannot be written.
    """
    data = context.data
    name = f"few-shot-{data.shots}-{data.val_shots}-{data.split_seed}.parquet"
    file = storage.join(folder, name)
    write_split(manifest, data, file)
    return context.model_copy(update={"few_shot_file": file})


def _absolute_path(name: str) -> str:
    # Only what exists: 'demo' and open_clip's names are no paths.
    is_path = name != DEMO and "://" not in name and os.path.exists(name)  # noqa: PTH110
    return os.path.abspath(name) if is_path else name  # noqa: PTH100
