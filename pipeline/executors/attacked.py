"""A model of a proof on a worker: what was trained for it lies in other runs' outcome files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adu import storage
from adu.context import DEMO, Context
from adu.data.manifest import load_manifest
from adu.demo.manifest import demo_manifest
from adu.errors import UserError
from adu.evidence.bench import run_battery
from adu.evidence.proof import Proof, ProofConfig
from adu.evidence.references import TrainedReference, reference_run
from adu.evidence.subject import Material, MaterialConfig
from adu.methods import Method
from adu.training.checkpoint import open_checkpoint
from adu.training.config import RunConfig
from pipeline.executors.outcome_file import read_outcome
from pipeline.executors.run import Attacked, Run
from pipeline.patience import patiently


class AttackedModel:
    """One model of a proof.

    Args:
        run: Says which.
        context: Model and images.
        material: Of the model before, if there was one: its images are not read again.

    Attributes:
        material: What it is asked with.
    """

    def __init__(self, run: Run, context: Context, material: Material | None) -> None:
        assert run.attacked is not None
        self._place = run.place
        self._attacked: Attacked = run.attacked
        config = RunConfig.model_validate(run.config)
        self._config = ProofConfig.model_validate(self._attacked.config)
        self.material = _material(context, config.forget, self._config.material, material)
        self._proof = Proof(
            self._config, self.material, (config,), self._checkpoint, self._reference
        )

    def attacks(self) -> Iterator[tuple[int, int]]:
        """Runs what has not been run; gives how many attacks are done, and of how many."""
        contestant = self._proof.contestant(self._attacked.label, self._attacked.seed)
        battery = self._config.battery.attacks()
        for progress in run_battery([contestant], battery, self._place, _write):
            yield progress.done, progress.total

    def _checkpoint(self, run: RunConfig) -> bytes:
        return self._trained(run.method.name, run)

    def _reference(self, name: TrainedReference, run: RunConfig) -> Method:
        data = self._trained(name, reference_run(name, run))
        return open_checkpoint(data, f"of {name}", self.material.context)[0]

    def _trained(self, label: str, run: RunConfig) -> bytes:
        file = self._attacked.trained[label]
        outcome = read_outcome(file, run)
        if outcome is None or outcome.checkpoint is None:
            raise UserError(f"{file}: holds no checkpoint of {label}")
        return outcome.checkpoint


def _write(file: str, data: bytes) -> None:
    patiently(file, lambda: storage.write_bytes(file, data))


def _material(
    context: Context, forget: tuple[str, ...], config: MaterialConfig, earlier: Material | None
) -> Material:
    wanted = (id(context), forget, config)
    if earlier and (id(earlier.context), earlier.forget, earlier.config) == wanted:
        return earlier
    data = context.config.data
    whole = demo_manifest() if data.manifest == DEMO else load_manifest(data.manifest)
    return Material(context, replace(whole, allow_uri=data.allow_uri), forget, config)
