"""How a search shares out its executors, and what it says when nothing works."""

from pipeline.conductor import _grouped_failures, code_version, share_out
from pipeline.executor import Executors
from tests.pipeline import records


def shares(n_executors, n_shares):
    everyone = Executors(dict.fromkeys(range(n_executors)))
    return [share.indices for share in share_out(everyone, n_shares)]


def test_executors_are_shared_out_evenly():
    assert shares(2, 2) == [(0,), (1,)]
    assert shares(5, 2) == [(0, 2, 4), (1, 3)]
    assert shares(2, 3) == [(0,), (1,)]
    assert shares(3, 1) == [(0, 1, 2)]


def test_own_executors_are_tried_first():
    assert Executors(dict.fromkeys(range(4))).rather((2, 3)).indices == (2, 3, 0, 1)


def test_failures_are_grouped_by_reason():
    trials = [records.trial(number, 0, 0, "failed") for number in range(3)]
    trials[1].error = "TrainingDivergedError: epoch 2: loss term 'mmd'"
    told = _grouped_failures(trials)
    assert told == (
        "all 3 trials failed: 2 x ValueError: boom; "
        "1 x TrainingDivergedError: epoch 2: loss term 'mmd'"
    )


def test_the_version_of_the_code_is_known():
    assert code_version()["adu_search_version"]
