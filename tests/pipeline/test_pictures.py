"""Every picture of a study is drawn, also where there is little to draw."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from adu.evaluate import TestResult
from pipeline.pictures import study_pictures
from pipeline.summary import StudyRecord
from tests.pipeline import records

DOMAINS = ("photo", "sketch")


def result(n: int, mem: float, for_: float) -> TestResult:
    features_NE = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    domain_N = np.arange(n) % 2
    return TestResult(records.scores(mem, for_), features_NE, domain_N, domain_N, 1.0)


def only_failures(study: StudyRecord) -> StudyRecord:
    trials = [records.trial(0, 0, 0, "failed")]
    return StudyRecord(study.forget, trials, None, study.finals, complete=True)


@pytest.mark.parametrize("n", [2, 40], ids=["two images", "forty images"])
@pytest.mark.parametrize("change", [lambda study: study, only_failures], ids=["study", "failures"])
def test_every_picture_is_drawn(n, change):
    study = change(records.study())
    pictures = study_pictures(study, result(n, 0.9, 0.1), result(n, 0.9, 0.9), DOMAINS, "a note")
    assert len(pictures) == 5
    for name, data in pictures.items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        assert len(image.convert("L").getcolors(1 << 16)) > 20, f"{name} is blank"
