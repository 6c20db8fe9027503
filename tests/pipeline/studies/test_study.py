"""What Optuna is told of trials, shown with a real study and without Ray's processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipeline.results.copies import OutputLostError
from pipeline.studies.attributes import RECORD, stored_scores
from pipeline.studies.space import defaults
from pipeline.studies.study import Study
from tests.pipeline.studies.made_up import EPOCHS, SPACE, Queue, make_spec, over, result, stored


@pytest.fixture
def spec(tmp_path):
    return make_spec(tmp_path)


def test_a_trial_that_is_stopped_early_is_pruned_with_its_intermediate_values(spec):
    # Ray's own searcher tells COMPLETE here, which passes epoch 2's value off as the result.
    Queue(Study(spec)).run("a", [0.2, 0.4])
    (trial,) = stored(spec)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.2, 2: 0.4}
    assert trial.value == 0.4


def test_a_full_trial_is_complete_with_its_last_value(spec):
    Queue(Study(spec)).run("a", [0.2, 0.9, 0.4, 0.5])
    (trial,) = stored(spec)
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {1: 0.2, 2: 0.9, 3: 0.4, 4: 0.5}
    assert trial.value == 0.5


def test_a_failed_trial_counts_and_has_no_value(spec):
    study = Study(spec)
    queue = Queue(study)
    queue.propose("a")
    queue.on_trial_result("a", result(1, 0.3))
    queue.on_trial_complete("a", over("failed", "TrainingDivergedError: loss term 'mmd'"))
    (trial,) = stored(spec)
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    (record,) = study.records
    assert (record.state, record.error) == ("failed", "TrainingDivergedError: loss term 'mmd'")


def test_the_papers_defaults_are_the_first_trial_and_are_enqueued_once(spec):
    assert Queue(Study(spec)).run("a") == defaults(SPACE)
    for _ in range(3):
        again = Study(spec)
    assert Queue(again).run("b") != defaults(SPACE)
    assert len(stored(spec)) == 2


def test_a_study_that_is_opened_again_has_its_records_and_no_zombies(spec):
    first = Study(spec)
    queue = Queue(first)
    queue.run("a", [0.1, 0.2, 0.3, 0.4])
    queue.run("b", [0.1, 0.2])
    running = queue.suggest("killed")["run"]
    queue.on_trial_result("killed", result(1, 0.9))

    again = Study(spec)
    assert again.records == first.records
    # MLflow may not have heard of them all.
    assert {n: list(scores) for n, scores in again.restored.items()} == {0: [1, 2, 3, 4], 1: [1, 2]}
    states = [trial.state for trial in stored(spec)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING]

    # What was running goes on under its number, with its parameters and what it had reported.
    queue = Queue(again)
    assert queue.suggest("x")["run"] == running
    queue.on_trial_result("x", result(2, 0.8, before=[(1, 0.9)]))
    queue.on_trial_complete("x", result(4, 0.7))
    assert queue.heard()[:3] == [
        ("epoch", "sketch/2", 1, False),
        ("epoch", "sketch/2", 2, False),
        ("epoch", "sketch/2", 4, True),
    ]
    (*_, trial) = stored(spec)
    assert (trial.number, trial.state) == (2, TrialState.COMPLETE)
    assert trial.intermediate_values == {1: 0.9, 2: 0.8, 4: 0.7}
    assert len(again.records) == 3


def test_a_trial_killed_within_the_last_step_of_its_end_is_not_run_again(spec, monkeypatch):
    killed = Study(spec)
    monkeypatch.setattr(killed, "_tell", lambda record: None)
    Queue(killed).run("a", [0.1, 0.2, 0.3, 0.4])
    assert [record.state for record in Study(spec).records] == ["complete"]
    (trial,) = stored(spec)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)


def test_nothing_is_built_on_what_another_machine_would_not_know(tmp_path):
    # Where the output is a bucket, a commit is the copy of the journal that a new pod finds.
    known = []
    state = tmp_path / "unfinished" / "sketch" / "0.state"

    def commit():
        trials = stored(spec)
        known.append([(t.state.name, RECORD in t.user_attrs, state.exists()) for t in trials])

    spec = make_spec(tmp_path, commit=commit)
    queue = Queue(Study(spec))
    queue.propose("a")
    # The trial is there, with its options, before it can leave its state.
    assert known == [[("RUNNING", False, False)]]
    state.parent.mkdir(parents=True)
    state.write_bytes(b"state")
    queue.on_trial_complete("a", result(EPOCHS, 0.5))
    # Its end is known before the state goes.
    assert known[1:] == [[("COMPLETE", True, True)]]
    assert not state.exists()


def test_a_trial_does_not_count_as_ended_if_its_end_may_be_lost(tmp_path):
    calls = []

    def fail_at_the_end():
        calls.append(None)
        if len(calls) > 1:
            raise OutputLostError("the store is away")

    study = Study(make_spec(tmp_path, commit=fail_at_the_end))
    queue = Queue(study)
    queue.propose("a")
    queue.on_trial_complete("a", result(EPOCHS, 0.5))
    # Tune would call it the trial's failure, and go on with the next one.
    assert isinstance(queue.exception, OutputLostError)
    assert not study.records
    assert queue.suggest("b") == Searcher.FINISHED


def test_proposals_are_the_same_for_the_same_seed_and_differ_between_studies(tmp_path):
    def proposals(folder, **changes):
        (tmp_path / folder).mkdir()
        study = Study(make_spec(tmp_path / folder, **changes))
        return [study.propose().params for _ in range(4)]

    same = proposals("a")
    assert proposals("b") == same
    assert proposals("c", name="photo")[1:] != same[1:]


def test_a_proposal_does_not_depend_on_how_often_the_search_was_killed(tmp_path):
    def proposals(folder, restarts):
        (tmp_path / folder).mkdir()
        spec = make_spec(tmp_path / folder, startup_trials=2)
        queue, found = Queue(Study(spec)), []
        for number in range(6):
            found.append(queue.run(str(number), [0.1 * number] * EPOCHS))
            queue = Queue(Study(spec)) if restarts else queue
        return found

    assert proposals("steady", restarts=False) == proposals("killed", restarts=True)


def test_warm_starts_come_after_the_defaults_and_only_once(tmp_path):
    best = {"method.gamma": 100.0, "method.n_ctx": 4, "method.depth": 3}
    spec = make_spec(tmp_path, first=lambda: [best, best])
    queue = Queue(Study(spec))
    assert queue.run("a") == defaults(SPACE)
    # Clipped to the range.
    assert queue.run("b") == {"method.gamma": 30, "method.n_ctx": 4}
    Queue(Study(spec)).run("c")
    assert len(stored(spec)) == 3


def test_a_grid_is_the_defaults_and_then_every_point(tmp_path):
    study = Study(make_spec(tmp_path, sampler="grid", grid_points=2, trials=100))
    queue = Queue(study)
    # Two values of gamma by three of n_ctx; the defaults are one of them.
    found = [queue.run(str(number)) for number in range(6)]
    assert found[0] == defaults(SPACE)
    assert len({tuple(values.values()) for values in found}) == 6
    assert not study.wants


def test_mem_and_for_are_two_objectives_with_their_curves(tmp_path):
    spec = make_spec(tmp_path, objective="mem_for", sampler="nsga2")
    queue = Queue(Study(spec))
    queue.run("a", [0.2, 0.3, 0.4, 0.5])
    queue.run("b", [0.2, 0.3])
    complete, stopped = stored(spec)
    assert complete.values == [0.5, 0.5]
    assert stopped.state == TrialState.PRUNED
    # Optuna itself takes no intermediate values of two objectives.
    assert [scores.h for scores in stored_scores(stopped.user_attrs).values()] == [0.2, 0.3]
    assert Study(spec).curves()[0] == {1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}


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
    study = Study(make_spec(tmp_path, **budget))
    queue = Queue(study)
    last = [0.5, 0.6, 0.7, 0.8, 0.1, 0.1, 0.1, 0.1]
    done = 0
    while queue.propose(str(done)) != Searcher.FINISHED:
        queue.on_trial_complete(str(done), result(EPOCHS, last[done]))
        done += 1
    assert (done, study.ended_by) == (n_trials, ended_by)


def test_the_time_before_a_resumption_counts(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.studies.study.time.monotonic", lambda: clock[0])
    spec = make_spec(tmp_path, wall_time_s=100)
    queue = Queue(Study(spec))
    clock[0] = 90.0
    queue.run("a")
    again = Study(spec)
    assert again.wants
    clock[0] = 101.0
    assert not again.wants
    assert again.ended_by == "wall time"


def test_a_study_is_extended_by_asking_for_more(tmp_path):
    assert not Queue(Study(make_spec(tmp_path, trials=1))).run("a").keys() ^ SPACE.keys()
    assert not Study(make_spec(tmp_path, trials=1)).wants
    more = Study(make_spec(tmp_path, trials=3))
    assert (more.n_left, len(more.records)) == (2, 1)
    Queue(more).run("b")
    assert [trial.number for trial in stored(more.spec)] == [0, 1]


def test_the_state_of_a_trial_has_a_place_that_follows_from_study_and_number(spec):
    run = Study(spec).propose()
    assert Path(run.state_file) == Path(spec.place) / "0.state"
