"""What Optuna is told of trials, shown with a real study and without Ray's processes."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.executors.mailbox import MAX_RESTARTS, Event
from pipeline.executors.sharing import Executors, Share
from pipeline.results.output import OutputLostError
from pipeline.studies.samplers import open_storage
from pipeline.studies.searcher import RECORD, Study, StudyConfig, StudySearch, stored_scores
from pipeline.studies.space import Parameter, defaults
from pipeline.studies.study_run import StudyStopper, make_scheduler

EPOCHS = 4
SPACE = {
    "method.gamma": Parameter(low=0.1, high=30, log=True, default=30),
    "method.n_ctx": Parameter(choices=(2, 4, 8), default=8),
}


class Listener:
    def __init__(self):
        self.restored = []
        self.params = {}
        self.epochs = []
        self.ended = []
        self.suspended = []

    def trial_restored(self, trial, scores):
        self.restored.append((trial.number, dict(scores)))

    def trial_started(self, number, params):
        self.params[number] = params

    def epoch_ended(self, number, report, replayed):
        self.epochs.append((number, report.epoch, replayed))

    def trial_ended(self, trial):
        self.ended.append(trial)

    def trial_suspended(self, number):
        self.suspended.append(number)


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def make_study(folder, name="sketch", first=(), space=SPACE, **config):
    base = RunConfig(forget=("sketch",), train=TrainConfig(epochs=EPOCHS))
    storage = open_storage(None, folder / "optuna.journal")
    config = StudyConfig(**{"trials": 8, **config})
    return Study(name, base, space, config, storage, name, str(folder / "savepoints"), first)


class StubMailbox:
    """Stands for an executor: keeps what it is sent."""

    def __init__(self, index):
        self.index = index
        self.sent = []

    def ask(self, method, *arguments):
        self.sent.append((method, *arguments))

    send = ask


def executors(n):
    pool = Executors()
    for index in range(n):
        pool.add(StubMailbox(index))
        pool.turn(index, "ready")
    return pool


def search(study, pool=None):
    return StudySearch(study, Listener(), Share(pool or executors(8), study.name))


def propose(search, trial_id):
    """Begins a trial; its options."""
    config = search.suggest(trial_id)
    return search._listener.params[int(config["run_id"].split("/")[1])]


def result(epoch, h, error=None):
    """An epoch as a trial's client passes it to Tune."""
    val = Scores(h, h, h, {"photo": h, "sketch": 1 - h}, {"photo": 3, "sketch": 3})
    report = EpochReport(epoch, EPOCHS, 0.1, {"total": 1.0}, val, 0.5, 0.25, 10.0)
    event = Event("failed", error=error) if error else Event("epoch", epoch=asdict(report))
    return {"epoch": epoch, "h": h, "event": event}


def run_trial(search, trial_id, values):
    """Runs a trial that gives a value in each epoch; the last is the one it ends with."""
    params = propose(search, trial_id)
    for epoch, h in enumerate(values[:-1], start=1):
        search.on_trial_result(trial_id, result(epoch, h))
    search.on_trial_complete(trial_id, result(len(values), values[-1]))
    return params


def stored(study):
    return optuna.load_study(study_name=study.name, storage=study.storage).get_trials()


def test_a_trial_that_is_stopped_early_is_pruned_with_its_intermediate_values(study):
    # Ray's own searcher tells COMPLETE here, which passes epoch 2's value off as the result.
    run_trial(search(study), "a", [0.2, 0.4])
    (trial,) = stored(study)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.2, 2: 0.4}
    assert trial.value == 0.4


def test_a_full_trial_is_complete_with_its_last_value(study):
    run_trial(search(study), "a", [0.2, 0.9, 0.4, 0.5])
    (trial,) = stored(study)
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {1: 0.2, 2: 0.9, 3: 0.4, 4: 0.5}
    assert trial.value == 0.5


def test_a_failed_trial_counts_and_has_no_value(study):
    it = search(study)
    it.suggest("a")
    it.on_trial_result("a", result(1, 0.3))
    it.on_trial_complete("a", result(1, 0.3, error="TrainingDivergedError: loss term 'mmd'"))
    (trial,) = stored(study)
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    (record,) = it.records
    assert (record.state, record.error) == ("failed", "TrainingDivergedError: loss term 'mmd'")


def test_a_trial_whose_client_died_is_a_failed_one(study):
    it = search(study)
    it.suggest("a")
    it.on_trial_complete("a", None, error=True)
    assert [record.state for record in it.records] == ["failed"]


def test_the_papers_defaults_are_the_first_trial_and_are_enqueued_once(study):
    first = search(study)
    assert run_trial(first, "a", [0.5] * EPOCHS) == defaults(SPACE)
    for _ in range(3):
        again = search(study)
    assert run_trial(again, "b", [0.5] * EPOCHS) != defaults(SPACE)
    assert len(stored(study)) == 2


def test_a_study_that_is_opened_again_has_its_records_and_no_zombies(study):
    first = search(study)
    run_trial(first, "a", [0.1, 0.2, 0.3, 0.4])
    run_trial(first, "b", [0.1, 0.2])
    running = propose(first, "killed")
    first.on_trial_result("killed", result(1, 0.9))

    again = search(study)
    assert [record.number for record in again.records] == [0, 1]
    assert again.records == first.records
    # MLflow may not have heard of them all.
    curves = {number: list(scores) for number, scores in again._listener.restored}
    assert curves == {0: [1, 2, 3, 4], 1: [1, 2]}
    states = [trial.state for trial in stored(study)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING]

    # What was running goes on under its number, with its parameters and what it had reported.
    assert propose(again, "x") == running
    report = result(2, 0.8)
    report["event"] = replace(report["event"], before=(result(1, 0.9)["event"].epoch,))
    again.on_trial_result("x", report)
    again.on_trial_complete("x", result(4, 0.7))
    assert again._listener.epochs == [(2, 1, True), (2, 2, True), (2, 4, False)]
    (*_, trial) = stored(study)
    assert (trial.number, trial.state) == (2, TrialState.COMPLETE)
    assert trial.intermediate_values == {1: 0.9, 2: 0.8, 4: 0.7}
    assert len(again.records) == 3


def test_a_trial_killed_within_the_last_step_of_its_end_is_not_run_again(study, monkeypatch):
    killed = search(study)
    monkeypatch.setattr(killed, "_tell", lambda number, record: None)
    run_trial(killed, "a", [0.1, 0.2, 0.3, 0.4])
    again = search(study)
    assert [record.state for record in again.records] == ["complete"]
    (trial,) = stored(study)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)


def test_nothing_is_built_on_what_another_machine_would_not_know(study):
    # Where the output is a bucket, a commit is the copy of the journal that a new pod finds.
    known = []
    savepoint = Path(study.savepoints) / "0"

    def commit():
        trials = stored(study)
        known.append([(t.state.name, RECORD in t.user_attrs, savepoint.exists()) for t in trials])

    it = search(replace(study, commit=commit))
    it.suggest("a")
    # The trial is there, with its options, before it can leave a savepoint.
    assert known == [[("RUNNING", False, False)]]
    savepoint.parent.mkdir(parents=True)
    savepoint.write_bytes(b"state")
    for epoch in range(1, EPOCHS):
        it.on_trial_result("a", result(epoch, 0.5))
    it.on_trial_complete("a", result(EPOCHS, 0.5))
    # Its end is known before the savepoint goes.
    assert known[1:] == [[("COMPLETE", True, True)]]
    assert not savepoint.exists()


def test_a_trial_does_not_count_as_ended_if_its_end_may_be_lost(study):
    def fail():
        raise OutputLostError("the store is away")

    it = search(study)
    it.suggest("a")
    it._study = replace(study, commit=fail)
    with pytest.raises(OutputLostError):
        it.on_trial_complete("a", result(EPOCHS, 0.5))
    assert it._listener.ended == []


def test_an_exception_of_ours_ends_the_study_and_is_no_trials_failure(study):
    # Tune would call it the trial's, start its client again and go on with the next one.
    it = search(study)
    it.suggest("a")
    error = RuntimeError("a bug")
    it._listener.epoch_ended = Mock(side_effect=error)
    with pytest.raises(RuntimeError, match="a bug"):
        it.on_trial_result("a", result(1, 0.5))
    it.on_trial_complete("a", None, error=True)
    assert it.exception is error
    assert StudyStopper(threading.Event(), it).stop_all()
    it.suspend_running()
    assert [trial.state for trial in stored(study)] == [TrialState.WAITING]


def test_what_is_interrupted_waits_and_is_nobodys_zombie(study):
    it = search(study)
    it.suggest("a")
    it.on_trial_complete("a", result(1, 0.5) | {"event": Event("interrupted")})
    it.suspend_running()
    assert it.records == []
    assert it._listener.suspended == [0]
    assert [trial.state for trial in stored(study)] == [TrialState.WAITING]
    it.close()
    assert [trial.state for trial in stored(study)] == [TrialState.FAIL]


def test_proposals_are_the_same_for_the_same_seed_and_differ_between_studies(tmp_path):
    def proposals(folder, **changes):
        (tmp_path / folder).mkdir()
        it = search(make_study(tmp_path / folder, **changes))
        return [propose(it, str(i)) for i in range(4)]

    same = proposals("a")
    assert proposals("b") == same
    assert proposals("c", name="photo")[1:] != same[1:]


def test_a_proposal_does_not_depend_on_how_often_the_search_was_killed(tmp_path):
    def proposals(folder, restarts):
        (tmp_path / folder).mkdir()
        study = make_study(tmp_path / folder, startup_trials=2)
        it, found = search(study), []
        for i in range(6):
            found.append(run_trial(it, str(i), [0.1 * i] * EPOCHS))
            it = search(study) if restarts else it
        return found

    assert proposals("steady", restarts=False) == proposals("killed", restarts=True)


def test_warm_starts_come_after_the_defaults_and_only_once(tmp_path):
    best = {"method.gamma": 100.0, "method.n_ctx": 4, "method.depth": 3}
    study = make_study(tmp_path, first=[best, best])
    it = search(study)
    assert run_trial(it, "a", [0.1] * EPOCHS) == defaults(SPACE)
    # Clipped to the range.
    assert run_trial(it, "b", [0.2] * EPOCHS) == {"method.gamma": 30, "method.n_ctx": 4}
    run_trial(search(study), "c", [0.1] * EPOCHS)
    assert len(stored(study)) == 3


def test_a_grid_is_the_defaults_and_then_every_point(tmp_path):
    it = search(make_study(tmp_path, sampler="grid", grid_points=2, trials=100))
    # Two values of gamma by three of n_ctx; the defaults are one of them.
    assert it.n_left == 6
    found = [run_trial(it, str(i), [0.1] * EPOCHS) for i in range(6)]
    assert found[0] == defaults(SPACE)
    assert len({tuple(values.values()) for values in found}) == 6
    assert it.n_left == 0


def test_mem_and_for_are_two_objectives_with_their_curves(tmp_path):
    study = make_study(tmp_path, objective="mem_for", sampler="nsga2")
    it = search(study)
    run_trial(it, "a", [0.2, 0.3, 0.4, 0.5])
    run_trial(it, "b", [0.2, 0.3])
    complete, stopped = stored(study)
    assert complete.values == [0.5, 0.5]
    assert stopped.state == TrialState.PRUNED
    # Optuna itself takes no intermediate values of two objectives.
    assert [scores["h"] for scores in stored_scores(stopped.user_attrs).values()] == [0.2, 0.3]
    assert it.curves()[0] == {1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}


@pytest.mark.parametrize(
    ("budget", "n_trials", "ended_by"),
    [
        ({"target_h": 0.75}, 4, "target H"),
        ({"patience": 2}, 6, "patience"),
        ({"wall_time_s": 0.001}, 1, "wall time"),
        ({}, 8, "trials"),
    ],
)
def test_a_study_ends_when_a_budget_is_spent(tmp_path, budget, n_trials, ended_by):
    it = search(make_study(tmp_path, **budget))
    last = [0.5, 0.6, 0.7, 0.8, 0.1, 0.1, 0.1, 0.1]
    done = 0
    while it.n_left and it.suggest(str(done)) != Searcher.FINISHED:
        it.on_trial_complete(str(done), result(EPOCHS, last[done]))
        done += 1
    assert (done, it.ended_by) == (n_trials, ended_by)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_trials_before_a_resumption_are_compared_with_those_after_it(tmp_path, scheduler):
    study = make_study(tmp_path, scheduler=scheduler, grace_epochs=1, reduction_factor=2)
    trial = Trial("trial", stub=True)
    bad = {"epoch": 2, "h": 0.1}
    for curves, decision in (([], "CONTINUE"), ([{1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8}] * 4, "STOP")):
        scheduler_ = make_scheduler(study, curves)
        scheduler_.on_trial_add(None, trial)
        assert scheduler_.on_trial_result(None, trial, bad) == decision


def test_a_trials_wall_time_begins_when_its_study_left_the_executor(study, monkeypatch):
    pool = executors(1)
    it = search(study, pool)

    def at(time_s):
        monkeypatch.setattr("pipeline.studies.searcher.time.time", lambda: time_s)

    for trial_id, began_at, ended_at in (("a", 98.0, 100.0), ("b", 101.0, 103.0)):
        at(began_at)
        it.suggest(trial_id)
        at(ended_at)
        it.on_trial_complete(trial_id, result(1, 0.5))
    # Somebody else's run in between is no overhead of the next trial.
    pool.lease().release()
    at(105.0)
    it.suggest("c")
    at(109.0)
    it.on_trial_complete("c", result(1, 0.5))
    assert [record.wall_s for record in it.records] == [2.0, 3.0, 4.0]
    assert [record.loop_s for record in it.records] == [0.75] * 3


def test_an_executor_has_its_run_before_tune_has_a_client_for_it(study):
    mailbox = StubMailbox(0)
    pool = Executors()
    pool.add(mailbox)
    pool.turn(0, "ready")
    it = search(study, pool)
    assert it.suggest("a") == {"run_id": "sketch/0", "executor": 0}
    ((method, command),) = mailbox.sent
    assert (method, command.run_id, command.kind) == ("post", "sketch/0", "train")
    assert command.savepoint == f"{study.savepoints}/0"
    assert command.run["method"]["gamma"] == 30
    assert command.run["train"]["epochs"] == EPOCHS
    it.suspend_running()
    assert mailbox.sent[1:] == [("withdraw", "sketch/0")]


def test_nothing_is_proposed_before_there_is_an_executor_for_it(study):
    pool = executors(2)
    it = search(study, pool)
    configs = [it.suggest(str(number)) for number in range(3)]
    assert [config and config["executor"] for config in configs] == [0, 1, None]
    assert len(stored(study)) == 2
    pool.add(StubMailbox(2))
    pool.turn(2, "ready")
    assert it.suggest("3")["executor"] == 2
    it.on_trial_complete("1", result(EPOCHS, 0.5))
    assert it.suggest("4")["executor"] == 1


def test_a_trial_that_has_lost_its_executor_goes_on_with_another(study):
    pool = executors(1)
    it = search(study, pool)
    lost = propose(it, "a")
    it.on_trial_result("a", result(1, 0.3))
    pool.turn(0, "starting")
    it.on_trial_complete("a", result(1, 0.3) | {"event": Event("lost")})
    assert it._listener.suspended == [0]
    assert it.suggest("b") is None
    pool.add(StubMailbox(1))
    pool.turn(1, "ready")
    assert it.suggest("c") == {"executor": 1, "run_id": "sketch/0"}
    assert it._listener.params == {0: lost}
    it.on_trial_complete("c", result(EPOCHS, 0.5))
    (trial,) = stored(study)
    assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {1: 0.3, EPOCHS: 0.5})


def test_a_trial_that_loses_every_executor_fails_in_the_end(study):
    it = search(study)
    for number in range(MAX_RESTARTS + 1):
        assert it.suggest(str(number))["run_id"] == "sketch/0"
        it.on_trial_complete(str(number), result(1, 0.3) | {"event": Event("lost")})
    (record,) = it.records
    assert (record.state, record.error) == (
        "failed",
        "its executor was lost 4 times",
    )


def test_a_trial_that_makes_progress_may_lose_any_number_of_executors(study):
    it = search(study)
    for number in range(2 * MAX_RESTARTS):
        assert it.suggest(str(number))["run_id"] == "sketch/0"
        if number == MAX_RESTARTS:
            it.on_trial_result(str(number), result(1, 0.3))
        it.on_trial_complete(str(number), {"epoch": 0, "event": Event("lost")})
    assert not it.records
    assert it.suggest("last")["run_id"] == "sketch/0"


def test_a_study_is_not_over_while_a_trial_may_lose_its_executor(tmp_path):
    it = search(make_study(tmp_path, trials=2))
    it.suggest("a")
    it.suggest("b")
    assert it.suggest("c") is None
    it.on_trial_complete("a", result(EPOCHS, 0.5))
    assert it.suggest("c") is None
    it.on_trial_complete("b", result(1, 0.3) | {"event": Event("lost")})
    assert it.suggest("c")["run_id"] == "sketch/1"
    it.on_trial_complete("c", result(EPOCHS, 0.5))
    assert it.suggest("d") == Searcher.FINISHED
