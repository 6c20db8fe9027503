"""The time that is left: within a factor of 1.5 from the first tenth of a search to the last."""

from __future__ import annotations

import heapq

import pytest

from adu.training.trainer import EpochReport
from pipeline.executors.run import AGAIN, PROOF, TRIAL, Run
from pipeline.results.time_left import PROOF_EPOCHS, StudyWork, TimeLeft
from pipeline.studies.config import StudyConfig
from pipeline.studies.race import n_again
from pipeline.studies.records import TrialRecord
from pipeline.studies.rules import likely_epochs
from tests.pipeline import records

EPOCHS = 6


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.results.time_left.time.monotonic", lambda: now[0])
    return now


def make_run(name: str, stage: str, study: str = "a") -> Run:
    config = {"train": {"epochs": EPOCHS}}
    return Run(study, name, stage, config, {}, "", tested=stage not in (TRIAL, AGAIN))


def report(epoch: int) -> EpochReport:
    val = records.scores(0.9, 0.5)
    return EpochReport(epoch, EPOCHS, 0.01, {"total": 1.0}, val, 1.0, 0.5, 64.0)


def replay(view: TimeLeft, clock: list[float], jobs: list, n: int) -> list[tuple[float, float]]:
    """Runs jobs of (run, epochs, seconds an epoch, seconds at the end), so many at a time.

    Returns:
        The time and the estimate after each epoch.
    """
    waiting, events, told = list(jobs), [], []

    def begin(at):
        if waiting:
            run, epochs, epoch_s, end_s = waiting.pop(0)
            clock[0] = at
            view.run_started(run)
            heapq.heappush(events, (at + epoch_s, run.key, 1, run, epochs, epoch_s, end_s, at))

    for _ in range(n):
        begin(0.0)
    while events:
        at, key, epoch, run, epochs, epoch_s, end_s, began = heapq.heappop(events)
        clock[0] = at
        if epoch > epochs:
            record = TrialRecord(0, {}, epochs, "complete", None, at - began, 0.0)
            view.run_ended(run, record)
            begin(at)
            continue
        view.run_epoch(run, report(epoch), True)
        left = view.seconds()
        told.append((at, left))
        wait_s = end_s if epoch == epochs else epoch_s
        heapq.heappush(events, (at + wait_s, key, epoch + 1, run, epochs, epoch_s, end_s, began))
    return told


def demo_like(n_studies: int) -> tuple[list, StudyWork]:
    """Seven trials of which four are stopped at a rung, a race, and final runs that are tested."""
    config = StudyConfig(trials=7, grace_epochs=2, reduction_factor=4, race=2)
    work = StudyWork(7, EPOCHS, likely_epochs(config, EPOCHS), 2, 12)
    jobs = []
    for study in "abcdefgh"[:n_studies]:
        lengths = (6, 6, 2, 6, 2, 2, 2)
        for number, epochs in enumerate(lengths):
            jobs.append((make_run(str(number), TRIAL, study), epochs, 1.6, 0.1))
        for seed in (0, 1):
            jobs.append((make_run(f"again {seed}", AGAIN, study), EPOCHS, 1.5, 0.1))
        for number in range(12):
            jobs.append((make_run(f"best-{number}", "best", study), EPOCHS, 1.4, 1.5))
    return jobs, work


def pacs_like(n_studies: int) -> tuple[list, StudyWork]:
    """Two epochs, many runs again that are not tested, and tests that take as long as an epoch."""
    config = StudyConfig(trials=8, grace_epochs=1, reduction_factor=3)
    work = StudyWork(8, 2, likely_epochs(config, 2), n_again(config), 4)
    jobs = []
    for study in "abcdefgh"[:n_studies]:
        for number in range(8):
            jobs.append((make_run(str(number), TRIAL, study), 1 + number % 2, 40, 1))
        for seed in range(n_again(config)):
            jobs.append((make_run(f"again {seed}", AGAIN, study), 2, 33, 1))
        for number in range(4):
            jobs.append((make_run(f"best-{number}", "best", study), 2, 33, 35))
    return jobs, work


@pytest.mark.parametrize("n_studies", [1, 4])
@pytest.mark.parametrize(("search", "n_judged"), [(demo_like, 50), (pacs_like, 20)])
def test_after_the_first_tenth_it_is_within_a_factor_of_one_and_a_half(
    clock, search, n_judged, n_studies
):
    jobs, work = search(n_studies)
    names = list("abcdefgh"[:n_studies])
    told = replay(TimeLeft(names, work, 2), clock, jobs, 2)
    end = clock[0]
    judged = [(at, left) for at, left in told if 0.1 * end <= at <= 0.9 * end]
    assert len(judged) > n_judged
    for at, left in judged:
        assert (end - at) / 1.5 <= left <= 1.5 * (end - at), (at, left, end - at)


def test_nothing_is_estimated_before_the_first_epoch(clock):
    view = TimeLeft(["a"], StudyWork(2, EPOCHS, EPOCHS, 0, 1), 1)
    view.run_started(make_run("0", TRIAL))
    assert view.seconds() is None
    clock[0] = 2.0
    view.run_epoch(make_run("0", TRIAL), report(1), True)
    # Eleven epochs of trials, six of a final run and the test at its end, two seconds each.
    assert view.seconds() == pytest.approx(2 * (11 + 6 + 1))
    view.study_over("a")
    assert view.seconds() == 0


def test_attacks_take_what_the_first_of_them_have_taken(clock):
    view = TimeLeft(["a"], StudyWork(1, EPOCHS, EPOCHS, 0, 0, proofs=4), 1)
    view.run_started(make_run("0", TRIAL))
    clock[0] = 2.0 * EPOCHS
    view.run_epoch(make_run("0", TRIAL), report(EPOCHS), True)
    view.run_ended(make_run("0", TRIAL), TrialRecord(0, {}, EPOCHS, "complete", None, 12.0, 12.0))
    assert view.seconds() == pytest.approx(4 * PROOF_EPOCHS * 2)
    for name in "xy":
        view.run_started(make_run(name, PROOF))
        view.run_ended(make_run(name, PROOF), TrialRecord(-1, {}, 0, "complete", None, 30.0, 0.0))
    assert view.seconds() == pytest.approx(2 * 30)


def test_a_study_that_ends_early_has_no_more_trials(clock):
    view = TimeLeft(["a"], StudyWork(50, EPOCHS, EPOCHS, 0, 0), 1)
    view.run_started(make_run("0", TRIAL))
    clock[0] = 1.0
    view.run_epoch(make_run("0", TRIAL), report(1), True)
    view.run_ended(make_run("0", TRIAL), records.trial(0, 0.9, 0.5))
    assert view.seconds() > 100
    view.trials_over("a")
    assert view.seconds() == 0
