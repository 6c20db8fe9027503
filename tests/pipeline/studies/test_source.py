"""Runs that are known beforehand: each once, whatever happens."""

from pathlib import Path

import numpy as np

from adu.evaluation.evaluate import TestResult
from adu.training.config import RunConfig
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes
from pipeline.jobs.finals import fixed_run
from pipeline.studies.source import FixedRuns
from tests.pipeline import records

CONFIG = RunConfig(forget=("sketch",))
FAILED = records.trial(-1, 0, 0, "failed")
ENDED = records.trial(-1, 0.9, 0.5)


def make(folder, stage, seed=0):
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"seed": seed})})
    return fixed_run("sketch", stage, config, {}, str(folder))


def leave_outcome(run):
    features_NE = np.zeros((1, 2), np.float32)
    scores, counts_2CD = records.scores(0.9, 0.8), np.zeros((2, 1, 1), int)
    test = TestResult(scores, counts_2CD, features_NE, np.zeros(1), np.zeros(1), 1.0)
    outcome = TestOutcome(records.scores(0.7, 0.6), test, 0.4, None)
    data = outcome_bytes(RunConfig.model_validate(run.config), outcome)
    Path(run.outcome_file).write_bytes(data)


def test_equal_runs_are_run_once_and_differ_by_seed(tmp_path):
    runs = [make(tmp_path, "best"), make(tmp_path, "paper_defaults"), make(tmp_path, "best", 1)]
    source = FixedRuns("finals", runs)
    proposed = []
    while source.wants:
        proposed.append(source.propose().name)
    assert proposed == ["best-0", "best-1"]


def test_what_has_its_outcome_is_told_and_not_run_again(tmp_path):
    run, other = make(tmp_path, "best"), make(tmp_path, "best", 1)
    leave_outcome(run)
    told = []
    source = FixedRuns("finals", [run, other], lambda run, outcome: told.append(run.name))
    assert told == ["best-0"]
    assert source.propose() == other
    assert not source.wants
    leave_outcome(other)
    source.end(other, ENDED)
    assert told == ["best-0", "best-1"]
    assert not source.failures


def test_a_run_that_fails_has_its_reason_and_stops_no_other(tmp_path):
    first, second = make(tmp_path, "best"), make(tmp_path, "best", 1)
    told = []
    source = FixedRuns("finals", [first, second], lambda run, outcome: told.append(run.name))
    source.end(source.propose(), FAILED)
    leave_outcome(source.propose())
    source.end(second, ENDED)
    assert source.failures == {first.place: "ValueError: boom"}
    assert told == ["best-1"]
    assert source.n_live == 0
