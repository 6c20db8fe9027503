"""What runs next, and what becomes of a run: the one queue, without Ray's processes."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipeline.executors.run import Event
from pipeline.studies.queue import MAX_LOSSES
from pipeline.studies.source import FixedRuns
from pipeline.studies.study import Study
from tests.pipeline.stub_session import make_run
from tests.pipeline.studies.made_up import EPOCHS, Queue, make_spec, over, result, stored


@pytest.fixture
def study(tmp_path):
    return Study(make_spec(tmp_path))


def studies(folder, *names, **config):
    return [Study(make_spec(folder, name=name, **config)) for name in names]


def test_nothing_is_proposed_before_there_is_an_executor_for_it(study):
    queue = Queue(study, size=2)
    assert [queue.propose(str(n)) for n in range(3)] == ["sketch/0", "sketch/1", None]
    assert len(stored(study.spec)) == 2
    queue.capacity.size = 3
    assert queue.propose("3") == "sketch/2"


def test_studies_take_turns_and_each_learns_from_every_trial_before_the_next(tmp_path):
    queue = Queue(*studies(tmp_path, "a", "b", "c", trials=2), size=2)
    assert [queue.propose("0"), queue.propose("1"), queue.propose("2")] == ["a/0", "b/0", None]
    queue.on_trial_complete("1", result(EPOCHS, 0.5))
    assert queue.propose("3") == "b/1"
    queue.on_trial_complete("3", result(EPOCHS, 0.5))
    # The second study has come to its end: the third begins.
    assert queue.propose("4") == "c/0"


def test_a_studys_trials_run_side_by_side_only_where_an_executor_would_idle(tmp_path):
    queue = Queue(*studies(tmp_path, "a", "b", trials=3), size=4)
    proposed = [queue.propose(str(n)) for n in range(5)]
    assert proposed == ["a/0", "b/0", "a/1", "b/1", None]
    alone = Queue(*studies(tmp_path, "c", at_once=1), size=4)
    assert [alone.propose(str(n)) for n in range(2)] == ["c/0", None]


def test_studies_at_once_gives_all_executors_to_one_after_another(tmp_path):
    queue = Queue(*studies(tmp_path, "a", "b", trials=2), size=3, studies_at_once=1)
    assert [queue.propose(str(n)) for n in range(3)] == ["a/0", "a/1", None]
    for n in range(2):
        queue.on_trial_complete(str(n), result(EPOCHS, 0.5))
    assert queue.propose("3") == "b/0"


def test_trials_pass_runs_of_which_nobody_waits_for_the_answer(tmp_path):
    queue = Queue(*studies(tmp_path, "a", trials=2), size=2)
    runs = [make_run(str(n), tmp_path / str(n), tested=True) for n in range(2)]
    queue.add_fixed(FixedRuns("finals", runs))
    # A second trial of the study would know less than it could.
    assert [queue.propose("0"), queue.propose("1")] == ["a/0", "stub/0"]
    queue.on_trial_complete("0", result(EPOCHS, 0.5))
    assert queue.propose("2") == "a/1"
    queue.on_trial_complete("1", over("done"))
    assert queue.propose("3") == "stub/1"


def test_what_follows_a_study_is_run_before_the_queue_is_over(tmp_path):
    def then(study):
        runs = [make_run("best", tmp_path / "best", tested=True)]
        queue.add_fixed(FixedRuns("finals", runs, on_end=ended.append))

    ended = []
    queue = Queue(Study(make_spec(tmp_path, trials=1), then))
    queue.run("a")
    assert queue.propose("b") == "stub/best"
    queue.on_trial_complete("b", over("failed", "diverged"))
    assert queue.propose("c") == Searcher.FINISHED
    (finals,) = ended
    assert list(finals.failures.values()) == ["diverged"]


def test_what_is_added_at_an_end_and_has_nothing_to_run_ends_too(tmp_path):
    """As where a search is resumed whose last final run is there, but not its study's record."""

    def then(study):
        queue.add_fixed(FixedRuns("race", [], on_end=lambda _: queue.add_fixed(finals)))

    ended = []
    finals = FixedRuns("finals", [], on_end=ended.append)
    queue = Queue(Study(make_spec(tmp_path, trials=1), then))
    queue.run("a")
    assert queue.propose("b") is Searcher.FINISHED
    assert ended == [finals]


def test_a_run_that_has_lost_its_executor_goes_on_with_another(study):
    queue = Queue(study)
    queue.propose("a")
    queue.on_trial_result("a", result(1, 0.3))
    queue.on_trial_complete("a", None, error=True)
    assert queue.heard()[-1] == ("suspended", "sketch/0")
    assert queue.propose("b") == "sketch/0"
    queue.on_trial_complete("b", result(EPOCHS, 0.5, before=[(1, 0.3)]))
    (trial,) = stored(study.spec)
    assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {1: 0.3, EPOCHS: 0.5})


def test_a_run_that_loses_every_executor_fails_in_the_end(study):
    queue = Queue(study)
    for number in range(MAX_LOSSES + 1):
        assert queue.propose(str(number)) == "sketch/0"
        queue.on_trial_complete(str(number), None, error=True)
    (record,) = study.records
    assert (record.state, record.error) == ("failed", "its executor was lost 4 times")


def test_attacks_are_told_and_are_progress(tmp_path):
    queue = Queue()
    queue.add_fixed(FixedRuns("proof", [make_run("best", tmp_path / "best", tested=True)]))
    for number in range(2 * MAX_LOSSES):
        assert queue.propose(str(number)) == "stub/best"
        attacked = {**over("attack"), "event": Event("attack", attacks=(number, 13))}
        queue.on_trial_result(str(number), attacked)
        assert ("attacked", "stub/best", number, 13) in queue.heard()
        queue.on_trial_complete(str(number), None, error=True)


def test_a_run_that_makes_progress_may_lose_any_number_of_executors(study):
    queue = Queue(study)
    for number in range(2 * MAX_LOSSES):
        assert queue.propose(str(number)) == "sketch/0"
        if number == MAX_LOSSES:
            queue.on_trial_result(str(number), result(1, 0.3))
        queue.on_trial_complete(str(number), None, error=True)
    assert not study.records
    assert queue.propose("last") == "sketch/0"


def test_an_executor_that_cannot_start_is_no_runs_fault(study):
    queue = Queue(study)
    for number in range(2 * MAX_LOSSES):
        assert queue.propose(str(number)) == "sketch/0"
        queue.on_trial_result(str(number), over("broken", "CUDA error"))
        queue.on_trial_complete(str(number), None, error=True)
    assert not study.records
    assert ("news", "an executor cannot start: CUDA error") in queue.heard()


def test_the_queue_is_not_over_while_a_run_may_lose_its_executor(tmp_path):
    queue = Queue(*studies(tmp_path, "a", trials=2), size=2)
    queue.propose("0")
    queue.propose("1")
    queue.on_trial_complete("0", result(EPOCHS, 0.5))
    assert queue.propose("2") is None
    queue.on_trial_complete("1", None, error=True)
    assert queue.propose("2") == "a/1"
    queue.on_trial_complete("2", result(EPOCHS, 0.5))
    assert queue.propose("3") == Searcher.FINISHED


def test_what_is_interrupted_in_the_middle_of_an_epoch_waits_and_is_not_pruned(study):
    queue = Queue(study)
    queue.propose("a")
    queue.on_trial_result("a", result(1, 0.5))
    queue.stop.set()
    # Tune may still tell of it, as of a trial that was stopped.
    queue.on_trial_complete("a", result(2, 0.6))
    assert queue.propose("b") == Searcher.FINISHED
    queue.suspend()
    assert queue.listener.told[-2:] == [("epoch", "sketch/0", 1, True), ("suspended", "sketch/0")]
    assert not study.records
    (trial,) = stored(study.spec)
    assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {1: 0.5})


def test_an_exception_of_ours_ends_the_job_and_is_no_trials_failure(study, monkeypatch):
    queue = Queue(study)
    queue.propose("a")
    error = RuntimeError("a bug")

    def fail(*_):
        raise error

    monkeypatch.setattr(study, "keep", fail)
    queue.on_trial_result("a", result(1, 0.5))
    queue.on_trial_complete("a", None, error=True)
    assert queue.exception is error
    assert queue.ending
    queue.suspend()
    assert [trial.state for trial in stored(study.spec)] == [TrialState.WAITING]


def test_a_trial_that_a_rule_pauses_leaves_its_executor_to_others(study):
    queue = Queue(study)
    assert queue.propose("a") == "sketch/0"
    queue.keep_paused("a", result(1, 0.4)["event"])
    assert queue.propose("b") == "sketch/1"
    queue.on_trial_complete("b", result(EPOCHS, 0.5))
    queue.resume("a")
    assert queue.propose("c") is None
    queue.on_trial_complete("a", result(EPOCHS, 0.6))
    assert [trial.value for trial in stored(study.spec)] == [0.6, 0.5]


def test_a_trials_wall_time_begins_when_its_executor_was_left_by_the_one_before(study, monkeypatch):
    queue = Queue(study)

    def at(time_s):
        monkeypatch.setattr("pipeline.studies.queue.time.time", lambda: time_s)

    for trial_id, began_at, ended_at in (("a", 98.0, 100.0), ("b", 100.5, 103.0)):
        at(began_at)
        queue.propose(trial_id)
        at(ended_at)
        queue.on_trial_complete(trial_id, result(1, 0.5))
    # An executor that had nothing to do for a while was no trial's overhead.
    at(105.0)
    queue.propose("c")
    at(109.0)
    queue.on_trial_complete("c", result(1, 0.5))
    assert [record.wall_s for record in study.records] == [2.0, 3.0, 4.0]
    assert [record.loop_s for record in study.records] == [0.75] * 3
    assert queue.overheads_s == {"executor-1": [1.25, 2.25, 3.25]}
