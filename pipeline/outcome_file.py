"""Outcomes of final runs in files, so that the test split is read once whatever happens."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from adu import storage
from adu.evaluate import TestResult
from adu.metrics import Scores
from adu.trainer import RunConfig
from pipeline.session import TestOutcome


def write_outcome(file: Path, run: RunConfig, outcome: TestOutcome) -> None:
    """Writes what came of a run, whole or not at all."""
    test = outcome.test
    facts = {
        "run": run.model_dump(mode="json", by_alias=True),
        "val": asdict(outcome.val),
        "test": asdict(test.scores),
        "test_s": test.test_s,
        "domain_accuracy": outcome.domain_accuracy,
        "trained": outcome.checkpoint is not None,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        features_NE=test.features_NE,
        domain_N=test.domain_N,
        class_N=test.class_N,
        checkpoint=np.frombuffer(outcome.checkpoint or b"", np.uint8),
    )
    storage.write_bytes(str(file), buffer.getvalue())


def read_outcome(file: Path, run: RunConfig) -> TestOutcome | None:
    """Reads what came of a run; None if it has not come to its end."""
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        if facts["run"] != json.loads(run.model_dump_json(by_alias=True)):
            return None
        return TestOutcome(
            Scores(**facts["val"]),
            TestResult(
                Scores(**facts["test"]),
                arrays["features_NE"],
                arrays["domain_N"],
                arrays["class_N"],
                facts["test_s"],
            ),
            facts["domain_accuracy"],
            arrays["checkpoint"].tobytes() if facts["trained"] else None,
        )
