"""Outcomes of final runs survive their files, and are taken for no other run's."""

import numpy as np
import pytest

from adu.evaluation.attention import SampleAttention
from adu.evaluation.evaluate import TestResult
from adu.training.config import RunConfig
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes, read_outcome
from tests.pipeline import records

RUN = RunConfig(forget=("sketch",))


@pytest.mark.parametrize("checkpoint", [b"weights", None])
def test_an_outcome_survives_its_file(tmp_path, checkpoint):
    file = str(tmp_path / "run.npz")
    assert read_outcome(file, RUN) is None
    domain_N, class_N = np.array([0, 1]), np.array([2, 0])
    features_NE = np.arange(6, dtype=np.float32).reshape(2, 3)
    counts_2CD = np.array([[[1, 2]], [[3, 4]]])
    test = TestResult(records.scores(0.9, 0.8), counts_2CD, features_NE, domain_N, class_N, 1.5)
    attention = None
    if checkpoint:
        images, maps = np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 2, 2))
        attention = SampleAttention(images, maps, ("photo",), ("cup",))
    outcome = TestOutcome(records.scores(0.7, 0.6), test, 0.4, checkpoint, attention)
    (tmp_path / "run.npz").write_bytes(outcome_bytes(RUN, outcome))
    found = read_outcome(file, RUN)
    assert found.test.scores == test.scores and found.val == records.scores(0.7, 0.6)
    assert (found.test.features_NE == features_NE).all()
    assert (found.test.counts_2CD == counts_2CD).all()
    assert (found.test.class_N.tolist(), found.test.test_s) == ([2, 0], 1.5)
    assert (found.domain_accuracy, found.checkpoint) == (0.4, checkpoint)
    assert (found.attention is None) == (attention is None)
    if attention:
        assert (found.attention.attention_NHW == 1).all()
        assert found.attention.class_N == ("cup",)
    assert read_outcome(file, RunConfig(forget=("photo",))) is None
