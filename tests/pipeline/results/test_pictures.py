"""Every picture of a study is drawn, also where there is little to draw."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adu.evaluation.attention import SampleAttention
from adu.evaluation.evaluate import TestResult
from pipeline.executors.outcome_file import TestOutcome
from pipeline.results.pictures import study_pictures
from pipeline.studies.records import StudyRecord
from tests.pipeline import records

CLASSES, DOMAINS = ("cup", "fish"), ("photo", "sketch")


def result(n: int, mem: float, for_: float) -> TestOutcome:
    features_NE = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    domain_N = np.arange(n) % 2
    scores = records.scores(mem, for_)
    # One class has no image in the last domain.
    counts_2CD = np.array([[[9, 1], [8, 0]], [[10, 10], [10, 0]]])
    test = TestResult(scores, counts_2CD, features_NE, domain_N, domain_N, 1.0)
    images_NHWC = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    attention_NHW = np.random.default_rng(1).random((4, 2, 2))
    sample = SampleAttention(
        images_NHWC, attention_NHW, ("photo", "photo", "sketch", "sketch"), ("cup",) * 4
    )
    return TestOutcome(scores, test, 0.5, None, sample)


def only_failures(study: StudyRecord) -> StudyRecord:
    trials = [records.trial(0, 0, 0, "failed")]
    return StudyRecord(study.forget, trials, None, study.finals, complete=True)


def as_it_is(study: StudyRecord) -> StudyRecord:
    return study


def of_pairs(study: StudyRecord) -> StudyRecord:
    return replace(study, forget=("sketch:fish",))


@pytest.mark.parametrize("n", [2, 40], ids=["two images", "forty images"])
@pytest.mark.parametrize("change", [as_it_is, only_failures, of_pairs])
def test_every_picture_is_drawn(n, change):
    study = change(records.study())
    outcomes = result(n, 0.9, 0.1), result(n, 0.9, 0.9)
    pictures = study_pictures(study, *outcomes, CLASSES, DOMAINS, "a note")
    assert len(pictures) == 6 + (change is of_pairs)
    for name, data in pictures.items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        assert len(image.convert("L").getcolors(1 << 16)) > 20, f"{name} is blank"
