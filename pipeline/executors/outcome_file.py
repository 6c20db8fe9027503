"""Outcomes of final runs in files, so that the test split is read once whatever happens."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from adu import storage
from adu.evaluation.attention import SampleAttention
from adu.evaluation.evaluate import TestResult
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from pipeline.patience import patiently

_NOTHING = np.zeros(0)


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
        began_s: When the run began, or went on, in seconds since 1970.
        ended_s: When it ended.
        val_counts_2CD: Of an untouched model: rightly classified validation images, and all, of
            each class in each domain.
        epochs: The reports of its epochs, as plain values (see `epoch_report`).
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    val: Scores
    test: TestResult
    domain_accuracy: float
    checkpoint: bytes | None
    attention: SampleAttention | None = None
    began_s: float | None = None
    ended_s: float | None = None
    val_counts_2CD: np.ndarray | None = None
    epochs: tuple[Mapping[str, Any], ...] = ()


def outcome_place(folder: str, config: RunConfig) -> str:
    """Where a run of a configuration that is known beforehand is kept: file or URL, no suffix.

    Args:
        folder: Folder or URL of what is kept of runs; equal ones have the same place there.
        config: The configuration; the seed is part of it.
    """
    digest = hashlib.sha256(config.model_dump_json(by_alias=True).encode()).hexdigest()[:16]
    return storage.join(folder, digest)


def without_images(outcome: TestOutcome) -> TestOutcome:
    """The same without what only pictures are made of, which is most of its bytes."""
    none = np.zeros(0, np.int64)
    test = replace(
        outcome.test, features_NE=np.zeros((0, 0), np.float32), domain_N=none, class_N=none
    )
    return replace(outcome, test=test, attention=None)


def outcome_bytes(run: RunConfig, outcome: TestOutcome) -> bytes:
    """What came of a run, as a file holds it."""
    test = outcome.test
    facts = {
        "run": run.model_dump(mode="json", by_alias=True),
        "val": asdict(outcome.val),
        "test": asdict(test.scores),
        "test_s": test.test_s,
        "domain_accuracy": outcome.domain_accuracy,
        "began_s": outcome.began_s,
        "ended_s": outcome.ended_s,
        "epochs": outcome.epochs,
        "trained": outcome.checkpoint is not None,
    }
    attention = outcome.attention
    if attention is not None:
        facts |= {"sample_domains": attention.domain_N, "sample_classes": attention.class_N}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        counts_2CD=test.counts_2CD,
        val_counts_2CD=_NOTHING if outcome.val_counts_2CD is None else outcome.val_counts_2CD,
        features_NE=test.features_NE,
        domain_N=test.domain_N,
        class_N=test.class_N,
        checkpoint=np.frombuffer(outcome.checkpoint or b"", np.uint8),
        images_NHWC=attention.images_NHWC if attention else _NOTHING,
        attention_NHW=attention.attention_NHW if attention else _NOTHING,
    )
    return buffer.getvalue()


def read_outcome(file: str, run: RunConfig) -> TestOutcome | None:
    """Reads what came of a run; None if it has not come to its end."""
    data = patiently(file, lambda: storage.read_bytes(file) if storage.exists(file) else None)
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        if facts["run"] != json.loads(run.model_dump_json(by_alias=True)):
            return None
        if not {"counts_2CD", "val_counts_2CD"} <= set(arrays):
            # Of an earlier version, which counted less.
            return None
        return TestOutcome(
            Scores(**facts["val"]),
            TestResult(
                Scores(**facts["test"]),
                arrays["counts_2CD"],
                arrays["features_NE"],
                arrays["domain_N"],
                arrays["class_N"],
                facts["test_s"],
            ),
            facts["domain_accuracy"],
            arrays["checkpoint"].tobytes() if facts["trained"] else None,
            _attention(facts, arrays),
            facts["began_s"],
            facts["ended_s"],
            arrays["val_counts_2CD"] if arrays["val_counts_2CD"].size else None,
            tuple(facts.get("epochs", ())),
        )


def _attention(
    facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> SampleAttention | None:
    if "sample_domains" not in facts:
        return None
    return SampleAttention(
        arrays["images_NHWC"],
        arrays["attention_NHW"],
        tuple(facts["sample_domains"]),
        tuple(facts["sample_classes"]),
    )
