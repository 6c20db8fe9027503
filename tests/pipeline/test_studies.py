"""What Optuna is told of trials, shown with a real study and without Ray's processes."""

from __future__ import annotations

from dataclasses import asdict

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.mailbox import Event
from pipeline.space import Parameter, defaults
from pipeline.studies import Study, StudyConfig, StudySearch, best_trial

EPOCHS = 4
SPACE = {
    "method.gamma": Parameter(low=0.1, high=30, log=True, default=30),
    "method.n_ctx": Parameter(choices=(2, 4, 8), default=8),
}


class Listener:
    def __init__(self):
        self.ended = []
        self.abandoned = []

    def trial_started(self, number, trial_id, params):
        pass

    def epoch_ended(self, trial_id, report):
        pass

    def trial_ended(self, trial):
        self.ended.append(trial)

    def trial_abandoned(self, trial_id):
        self.abandoned.append(trial_id)


@pytest.fixture
def study(tmp_path):
    base = RunConfig(forget=("sketch",), train=TrainConfig(epochs=EPOCHS))
    return Study("sketch", base, SPACE, StudyConfig(trials=8), tmp_path / "optuna.journal")


def search(study):
    return StudySearch(study, Listener())


def result(epoch, h, executor=0, error=None):
    """An epoch as a trial's client passes it to Tune."""
    val = Scores(h, h, h, {"photo": h, "sketch": 1 - h}, {"photo": 3, "sketch": 3})
    report = EpochReport(epoch, EPOCHS, 0.1, {"total": 1.0}, val, 0.5, 0.25, 10.0)
    event = Event("failed", error=error) if error else Event("epoch", epoch=asdict(report))
    return {"epoch": epoch, "h": h, "executor": executor, "assigned_at": 0.0, "event": event}


def run_trial(search, trial_id, values):
    """Runs a trial that gives a value in each epoch; the last is the one it ends with."""
    params = search.suggest(trial_id)
    for epoch, h in enumerate(values[:-1], start=1):
        search.on_trial_result(trial_id, result(epoch, h))
    search.on_trial_complete(trial_id, result(len(values), values[-1]))
    return params


def stored(study):
    storage = JournalStorage(JournalFileBackend(str(study.journal)))
    return optuna.load_study(study_name=study.name, storage=storage).get_trials()


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


def test_the_papers_defaults_are_run_again_if_they_were_interrupted(study):
    killed = search(study)
    assert killed.suggest("a") == defaults(SPACE)
    assert search(study).suggest("b") == defaults(SPACE)


def test_a_study_that_is_opened_again_has_its_records_and_no_zombies(study):
    first = search(study)
    run_trial(first, "a", [0.1, 0.2, 0.3, 0.4])
    run_trial(first, "b", [0.1, 0.2])
    first.suggest("killed")
    first.on_trial_result("killed", result(1, 0.9))

    again = search(study)
    assert [record.trial_id for record in again.records] == ["a", "b"]
    assert again.records == first.records
    states = [trial.state for trial in stored(study)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


def test_what_is_interrupted_does_not_count(study):
    it = search(study)
    it.suggest("a")
    it.on_trial_complete("a", result(1, 0.5) | {"event": Event("interrupted")})
    it.abandon_running()
    assert it.records == []
    assert it._listener.abandoned == ["a"]
    assert [trial.state for trial in stored(study)] == [TrialState.FAIL]


def test_proposals_are_the_same_for_the_same_seed_and_differ_between_studies(study, tmp_path):
    def proposals(**changes):
        other = Study(**{**vars(study), "journal": tmp_path / "other", **changes})
        other.journal.unlink(missing_ok=True)
        it = search(other)
        return [it.suggest(str(i)) for i in range(4)]

    assert proposals() == proposals()
    assert proposals()[1:] != proposals(name="photo")[1:]


def test_the_best_trial_is_a_complete_one_if_there_is_any(study):
    it = search(study)
    run_trial(it, "stopped", [0.9, 0.9])
    assert best_trial(it.records).trial_id == "stopped"
    run_trial(it, "good", [0.1, 0.2, 0.3, 0.6])
    run_trial(it, "worse", [0.9, 0.9, 0.9, 0.5])
    assert best_trial(it.records).trial_id == "good"
    assert best_trial([]) is None


def test_a_trials_wall_time_begins_when_its_executor_was_free(study, monkeypatch):
    clock = iter([100.0, 103.0])
    monkeypatch.setattr("pipeline.studies.time.time", lambda: next(clock))
    it = search(study)
    for trial_id, assigned_at in (("a", 98.0), ("b", 101.0)):
        it.suggest(trial_id)
        it.on_trial_complete(trial_id, result(1, 0.5) | {"assigned_at": assigned_at})
    assert [record.wall_s for record in it.records] == [2.0, 3.0]
    assert [record.loop_s for record in it.records] == [0.75, 0.75]
