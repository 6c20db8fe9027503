"""What the executors hold and run: `adu`'s context, trainer and evaluation."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from adu.attention import SampleAttention, sample_attention
from adu.checkpoint import checkpoint_bytes
from adu.context import Context, ContextConfig, load_context
from adu.evaluate import TestResult, evaluate_images, evaluate_test
from adu.image_cache import ImageCache
from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig, Trainer

SESSION = "pipeline.executors.session:open_session"


@dataclass(frozen=True)
class TestOutcome:
    """What a tested run gives.

    Attributes:
        val: Scores of the tested model on the validation images.
        test: Scores and features on the test split.
        domain_accuracy: How often a linear probe, fitted on the features of the few-shot training
            images, tells the domain of the sampled test images.
        checkpoint: What was trained, as a safetensors file; None if nothing was.
        attention: Where it looks on sample images; None for a tower without a class token.
        began_s: When the run began, in seconds since 1970; None if nobody has noted it.
        ended_s: When it ended.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    val: Scores
    test: TestResult
    domain_accuracy: float
    checkpoint: bytes | None
    attention: SampleAttention | None = None
    began_s: float | None = None
    ended_s: float | None = None


def open_session(config: dict[str, Any]) -> AduSession:
    """Loads the frozen model on a worker, and the few-shot images once a node.

    Args:
        config: A `ContextConfig` as plain values.
    """
    from ray.train.torch import get_device

    device = get_device()
    assert isinstance(device, torch.device)
    cache = ImageCache(_job_on_node())
    context = load_context(ContextConfig.model_validate(config), device, cache)
    # Read now what every run needs, so that the first one is not slower than the others.
    _ = context.train, context.val
    return AduSession(context)


def _job_on_node() -> str:
    """A name that only the workers of this job on this node have; node ids are never used again."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_node_id()}/{context.get_job_id()}"


class AduSession:
    """The frozen model and the few-shot images, ready for any run."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def close(self) -> None:
        """Leaves the images to the others, or to nobody."""
        if self._context.cache is not None:
            self._context.cache.close()

    def start(self, run: dict[str, Any], state: bytes | None) -> AduRun:
        """Begins a run, or goes on with one."""
        return AduRun(RunConfig.model_validate(run), self._context, state)


class AduRun:
    """One run of the trainer."""

    def __init__(self, run: RunConfig, context: Context, state: bytes | None) -> None:
        self._run = run
        self._context = context
        self._trainer = Trainer(run, context)
        if state is not None:
            self._trainer.load_state(torch.load(io.BytesIO(state), weights_only=True))

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Trains the epochs that are left; see `epoch_report` for the way back."""
        for report in self._trainer.epochs():
            yield asdict(report)

    def state(self) -> bytes:
        """The trainer's state."""
        buffer = io.BytesIO()
        torch.save(self._trainer.state(), buffer)
        return buffer.getvalue()

    def test(self) -> bytes:
        """Evaluates on the test split; a pickled `TestOutcome`."""
        # Brings scikit-learn, which the start of an executor need not wait for.
        from adu.audit import probe_domains

        model, context, forget = self._trainer.model, self._context, self._run.forget
        val = evaluate_images(model, context, context.val, forget)
        test = evaluate_test(model, context, forget)
        domain_accuracy = probe_domains(
            model, context, context.train, test.features_NE, test.domain_N
        )
        trained = any(True for _ in model.trainable())
        checkpoint = checkpoint_bytes(model, self._run, context) if trained else None
        attention = sample_attention(model, context, forget)
        return pickle.dumps(TestOutcome(val, test, domain_accuracy, checkpoint, attention))


def epoch_report(values: dict[str, Any]) -> EpochReport:
    """An epoch's report out of its plain values."""
    return EpochReport(**{**values, "val": Scores(**values["val"])})
