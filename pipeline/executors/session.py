"""What the executors hold and run: `adu`'s context, trainer and evaluation."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from adu.context import Context, ContextConfig, load_context
from adu.data.cache import ImageCache
from adu.distributed import rank_and_world_size
from adu.evaluation.attention import sample_attention, shown_domains
from adu.evaluation.evaluate import count_images, scores_of
from adu.evaluation.metrics import Scores
from adu.evidence.references import shown_to
from adu.evidence.subject import Material
from adu.training.checkpoint import checkpoint_bytes
from adu.training.config import RunConfig
from adu.training.teacher import untrained
from adu.training.trainer import EpochReport, Trainer
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes
from pipeline.executors.run import REFERENCE, Run
from pipeline.executors.worker import WorkerSetup

SESSION = "pipeline.executors.session:open_session"


def open_session(setup: WorkerSetup) -> AduSession:
    """Loads the frozen model on a worker, and the few-shot images once a node.

    Raises:
        UserError: If the model does not take one of the probes, or there is no such model or image.
    """
    torch.set_num_threads(setup.threads)
    session = AduSession(setup.config, torch.device("cuda" if setup.on_gpu else "cpu"))
    for probe in setup.probes:
        untrained(RunConfig.model_validate(probe), session.context)
    return session


def job_on_node() -> str:
    """A name that only the workers of this job on this node have; node ids are never used again."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_node_id()}/{context.get_job_id()}"


class AduSession:
    """The frozen model and the few-shot images, ready for any run."""

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        self._device = device
        # Images of the last proof.
        self._material: Material | None = None
        self._open(config)

    def close(self) -> None:
        """Leaves the images to the others, or to nobody."""
        if self.context.cache is not None:
            self.context.cache.close()

    def start(self, run: Run, state: bytes | None) -> AduTraining:
        """Begins a run, or goes on with one; other images than the last run's are read first."""
        self._turn_to(run)
        self._material = None
        return AduTraining(run, self.context, state)

    def attack(self, run: Run) -> Iterator[tuple[int, int]]:
        """Runs a battery on one model; gives how many attacks are done, and of how many."""
        self._turn_to(run)
        # Not needed by who proves nothing.
        from pipeline.executors.attacked import AttackedModel

        model = AttackedModel(run, self.context, self._material)
        # For the next model of the same study.
        self._material = model.material
        return model.attacks()

    def _turn_to(self, run: Run) -> None:
        if self._device.type == "cuda":
            # What the last run has left; this one may need it, and so may who shares the GPU.
            torch.cuda.empty_cache()
        if run.context != self._config:
            self.close()
            self._open(run.context)

    def _open(self, config: Mapping[str, Any]) -> None:
        self._config = config
        cache = ImageCache(job_on_node())
        self.context = load_context(ContextConfig.model_validate(config), self._device, cache)
        # Read now what every run needs, so that the first one is not slower than the others.
        _ = self.context.train, self.context.val


class AduTraining:
    """One run of the trainer."""

    def __init__(self, run: Run, context: Context, state: bytes | None) -> None:
        self._began_s = time.time()
        self._run = RunConfig.model_validate(run.config)
        self._stage, self._distance = run.stage, run.distance
        self._context = context
        shown = shown_to(run.stage, self._run, context)
        self._trainer = Trainer(self._run, shown, run.deciding)
        if state is not None:
            self._trainer.load_state(torch.load(io.BytesIO(state), weights_only=True))

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Trains the epochs that are left; see `epoch_report` for the way back.

        The reference, which has nothing to train, is scored as it is.
        """
        if self._stage == REFERENCE:
            val = self._trainer.validate()
            yield asdict(EpochReport(1, 1, 0.0, {}, val, 0.0, time.time() - self._began_s, 0.0))
        for report in self._trainer.epochs():
            is_last = report.epoch == report.epochs
            yield asdict(self._measured(report) if self._distance and is_last else report)

    def _measured(self, report: EpochReport) -> EpochReport:
        """The report of the last epoch with the distance, which rank 0 alone measures."""
        if rank_and_world_size()[0] > 0:
            return report
        from adu.evidence.distance import distance  # not needed by most searches

        start_s = time.perf_counter()
        value = distance(self._trainer.model, self._run, self._context)
        val_s = report.val_s + time.perf_counter() - start_s
        return replace(report, val=replace(report.val, distance=value), val_s=val_s)

    def state(self) -> bytes:
        """The trainer's state."""
        buffer = io.BytesIO()
        torch.save(self._trainer.state(), buffer)
        return buffer.getvalue()

    def test(self, epochs: Sequence[Mapping[str, Any]]) -> bytes:
        """Evaluates on the test split.

        Args:
            epochs: The reports of all its epochs, as plain values.

        Returns:
            The bytes of an outcome file.
        """
        # Brings scikit-learn, which the start of an executor need not wait for.
        from adu.evidence.audit import probe_domains

        model, context, forget = self._trainer.model, self._context, self._run.forget
        val, val_counts_2CD = self._validated(epochs)
        test = self._trainer.test()
        with self._trainer.precision():
            domain_accuracy = probe_domains(
                model, context, context.train, test.features_NE, test.domain_N
            )
        deployed = bool(model.deployed())
        checkpoint = checkpoint_bytes(model, self._run, context) if deployed else None
        # An untouched model is shown for every forget set.
        domains = shown_domains(forget, context.domains) if deployed else context.domains
        attention = sample_attention(model, context, domains)
        outcome = TestOutcome(
            val,
            test,
            domain_accuracy,
            checkpoint,
            attention,
            self._began_s,
            time.time(),
            val_counts_2CD,
            tuple(epochs),
        )
        return outcome_bytes(self._run, outcome)

    def _validated(self, epochs: Sequence[Mapping[str, Any]]) -> tuple[Scores, np.ndarray | None]:
        """Scores on all validation images, which are looked at after the last epoch.

        An untouched model has none, but counts, since its scores are wanted for other forget sets.
        """
        if epochs:
            return Scores(**epochs[-1]["val"]), None
        context = self._context
        with self._trainer.precision():
            counts_2CD = count_images(self._trainer.model, context, context.val)
        scores = scores_of(counts_2CD, self._run.forget, context.classes, context.domains)
        return scores, counts_2CD


def epoch_report(values: Mapping[str, Any]) -> EpochReport:
    """An epoch's report out of its plain values."""
    return EpochReport(**{**values, "val": Scores(**values["val"])})
