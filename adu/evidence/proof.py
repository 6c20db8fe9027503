"""A proof: which models are attacked, with what, and what tells its outcomes from another's.

Where models are kept, and who trains the references, is for whoever proves to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field

from adu.config import StrictModel
from adu.evidence.attacks import BatteryConfig
from adu.evidence.bench import Contestant
from adu.evidence.references import (
    KNOWS_NOTHING,
    NEVER_SAW,
    NEVER_SHOWN,
    UNTOUCHED,
    TrainedReference,
    knows_nothing,
    reference_run,
    untouched,
)
from adu.evidence.subject import Material, MaterialConfig, Subject
from adu.methods import Method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.checkpoint import open_checkpoint
from adu.training.config import RunConfig

# Test images of each domain and class in a quick proof.
QUICK_TEST_PER_CELL = 10

# What a model has seen depends on these alone, beside the manifest's content.
DRAWN_BY = {"shots", "split_seed", "classes", "unseen_domains", "reduce_large"}


class ProofConfig(StrictModel):
    """What a model is attacked with, and what it is compared with."""

    quick: bool = Field(False, description="fewer images, variants and references")
    references: tuple[TrainedReference, ...] = Field(
        ("never_shown", "baseline", "forget_only"), description="trained for comparison"
    )
    battery: BatteryConfig = BatteryConfig()
    material: MaterialConfig = MaterialConfig()

    def written_out(self) -> Self:
        """With what ``quick`` stands for, but for what was asked for."""
        if not self.quick:
            return self
        changes: dict[str, Any] = {"battery": self.battery.quick()}
        if "references" not in self.model_fields_set:
            changes["references"] = (NEVER_SHOWN,)
        if "test_per_cell" not in self.material.model_fields_set:
            fewer = {"test_per_cell": QUICK_TEST_PER_CELL}
            changes["material"] = self.material.model_copy(update=fewer)
        return self.model_copy(update=changes)

    def references_of(self, run: RunConfig) -> list[TrainedReference]:
        """Those that are another model than the one in question."""
        return [name for name in self.references if name != run.method.name]

    def entries(self, runs: Sequence[RunConfig], n_never_saw: int = 0) -> list[tuple[str, int]]:
        """Label and seed of every model, the ends of the scale first.

        Args:
            runs: What trained the model in question, a run a seed.
            n_never_saw: Models that were pre-trained without what is forgotten.
        """
        floor = [(NEVER_SAW, number) for number in range(n_never_saw)] or [(KNOWS_NOTHING, 0)]
        trained = [
            (label, run.train.seed)
            for run in runs
            for label in (*self.references_of(run), run.method.name)
        ]
        return [(UNTOUCHED, 0), *floor, *trained]


@dataclass(frozen=True)
class Proof:
    """The models of a battery.

    Attributes:
        config: What they are attacked with, written out.
        material: What they are asked with.
        runs: What trained the model in question, a run a seed.
        checkpoint: Gives what a run has trained, as the bytes of a checkpoint.
        reference: Gives a reference of a run.
        never_saw: Models that were pre-trained without what is forgotten.
    """

    config: ProofConfig
    material: Material
    runs: tuple[RunConfig, ...]
    checkpoint: Callable[[RunConfig], bytes]
    reference: Callable[[TrainedReference, RunConfig], Method]
    never_saw: tuple[Method, ...] = ()

    def contestants(self) -> list[Contestant]:
        """All models."""
        entries = self.config.entries(self.runs, len(self.never_saw))
        return [self.contestant(label, seed) for label, seed in entries]

    def contestant(self, label: str, seed: int) -> Contestant:
        """One of the models; see `ProofConfig.entries`."""
        if label in (UNTOUCHED, NEVER_SAW, KNOWS_NOTHING):
            return self._end(label, seed)
        (run,) = (each for each in self.runs if each.train.seed == seed)
        if label == run.method.name:
            return self._model(run)
        (name,) = (each for each in self.config.references if each == label)
        return self._trained(name, run)

    def _end(self, label: str, seed: int) -> Contestant:
        bare = self.runs[0].model_copy(update={"method": ZeroShotConfig()})
        what = self.never_saw[seed].backbone.fingerprint if label == NEVER_SAW else label

        def subject() -> Subject:
            return Subject(label, seed, bare, self._end_model(label, seed), self.material)

        return Contestant(label, seed, self._identity(what), subject)

    def _end_model(self, label: str, seed: int) -> Method:
        if label == NEVER_SAW:
            return self.never_saw[seed]
        context = self.material.context
        task = context.task(self.material.forget)
        if label == UNTOUCHED:
            return untouched(context.backbone, task)
        return knows_nothing(context.backbone, task, seed)

    def _trained(self, name: TrainedReference, run: RunConfig) -> Contestant:
        its_run = reference_run(name, run)

        def subject() -> Subject:
            model = self.reference(name, run)
            return Subject(name, run.train.seed, its_run, model, self.material)

        identity = self._identity(f"{name} {its_run.model_dump_json()}")
        return Contestant(name, run.train.seed, identity, subject)

    def _model(self, run: RunConfig) -> Contestant:
        label, seed = run.method.name, run.train.seed
        with_reference = NEVER_SHOWN in self.config.references
        data = self.checkpoint(run)

        def subject() -> Subject:
            reference = self.reference(NEVER_SHOWN, run) if with_reference else None
            model, _ = open_checkpoint(data, f"of {label}, seed {seed}", self.material.context)
            return Subject(label, seed, run, model, self.material, reference)

        digest = hashlib.sha256(data).hexdigest()
        return Contestant(label, seed, self._identity(f"{digest} {with_reference}"), subject)

    def _identity(self, what: str) -> str:
        context, asked = self.material.context, self.material.config.model_dump_json()
        drawn = context.config.data.model_dump_json(include=DRAWN_BY)
        backbone = context.backbone.fingerprint
        return " ".join((what, backbone, context.manifest.digest, asked, drawn))
