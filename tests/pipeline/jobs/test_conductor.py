"""What a search says when nothing works."""

from pipeline.studies.records import grouped_failures
from pipeline.tracking.facts import origin
from tests.pipeline import records


def test_failures_are_grouped_by_reason():
    trials = [records.trial(number, 0, 0, "failed") for number in range(3)]
    trials[1].error = "TrainingDivergedError: epoch 2: loss term 'mmd'"
    told = grouped_failures(trials)
    assert told == (
        "all 3 trials failed: 2 x ValueError: boom; "
        "1 x TrainingDivergedError: epoch 2: loss term 'mmd'"
    )


def test_the_version_of_the_code_is_known():
    assert origin()["adu_search_version"]
