"""The one number that everything follows, in which what keeps too little comes last."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from adu.errors import UserError
from adu.evaluation.metrics import Scores
from pipeline.executors.run import Event
from pipeline.studies.config import StudyConfig
from pipeline.studies.goal import FRONT, Goal, parse_objective
from pipeline.studies.race import Race
from pipeline.studies.records import TrialRecord
from pipeline.studies.reference import Reference
from pipeline.studies.rules import Rules, make_rule
from pipeline.studies.selection import best_trial
from pipeline.studies.study import Study
from tests.pipeline.records import scores
from tests.pipeline.studies.made_up import EPOCHS, Queue, make_spec, over, report, result, stored

METRICS = {"h": 0.6, "mem": 0.9, "for": 0.45}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("h", 0.6),
        ("0.7*mem+0.3*for", 0.7 * 0.9 + 0.3 * 0.45),
        ("min(mem, for) - (1 - h) / 2", 0.45 - 0.2),
        ("-max(mem, for, 1)", -1),
        ("json:dumps", None),
        (f"{__name__}:forgotten", 0.45),
    ],
)
def test_an_objective_is_an_expression_or_a_function(text, value):
    if value is None:
        with pytest.raises(ValueError, match="fails where mem is 0 and for is 0"):
            parse_objective(text)
    else:
        assert parse_objective(text)(METRICS) == pytest.approx(value)


def forgotten(metrics):
    return metrics["for"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "accuracy",
            "holds 'accuracy' (allowed: h, mem, for, distance, numbers, + - * /, min(), max())",
        ),
        ("__import__('os').system('true')", "holds '__import__"),
        ("9**9**9", "holds '9 ** 9 ** 9'"),
        ("h if mem else for", "holds 'h if mem else for'"),
        ("h +", "is no expression"),
        ("mem.real", "holds 'mem.real'"),
        ("True", "holds 'True'"),
        ("min(h)", "holds 'min(h)'"),
        ("mem/distance", "fails where mem is 0 and for is 0 (float division by zero)"),
        ("mem/for", "fails where mem is 0 and for is 0 (float division by zero)"),
        ("1e308*10*h+1e999", "not a finite number"),
        ("(" * 300, "has 300 characters, at most 200"),
        ("nowhere:f", "must be package.module:function"),
    ],
)
def test_an_objective_that_cannot_be_is_refused_before_anything_starts(text, says):
    with pytest.raises(ValueError) as error:
        StudyConfig(objective=text)
    assert says in str(error.value)


@pytest.mark.parametrize("least", ["80", "a%", -0.1, 1.5, "120%"])
@pytest.mark.parametrize("name", ["min_mem", "min_mem_each"])
def test_a_least_mem_is_a_fraction_or_a_share(name, least):
    with pytest.raises(ValueError, match=name):
        StudyConfig(**{name: least})


def test_a_flags_text_is_a_number_if_it_can_be():
    assert (StudyConfig(min_mem="0.8").min_mem, StudyConfig(min_mem="80%").min_mem) == (0.8, "80%")


def test_what_keeps_too_little_is_worth_less_than_all_that_keeps_enough():
    goal = Goal("for - mem", min_mem="80%", max_forget_accuracy=0.7, zero_shot_mem=0.9)
    assert goal.least_mem == pytest.approx(0.72)
    worst_feasible = goal.merit(scores(1.0, 0.3))
    near, far = goal.merit(scores(0.70, 1.0)), goal.merit(scores(0.5, 1.0))
    both = goal.merit(scores(0.5, 0.1))
    assert worst_feasible > near > far > both
    # Among feasible ones the objective decides alone.
    assert goal.merit(scores(0.72, 0.9)) == pytest.approx(0.9 - 0.72)


def by_domain(photo, painting, sketch=0.2):
    accuracy = {"painting": painting, "photo": photo, "sketch": sketch}
    mem = (photo + painting) / 2
    return replace(scores(mem, 1 - sketch), accuracy_by_domain=accuracy)


def test_a_domain_that_goes_with_the_forget_domain_is_missed_whatever_the_mean_says():
    """Mem of 75 % may be 95 % of photos and 55 % of paintings."""
    zero_shot, forget = by_domain(0.9, 0.8, sketch=0.7), ("sketch",)
    goal = Goal(min_mem_each="75%")
    assert goal.lacks_zero_shot
    goal = goal.beside(zero_shot, forget)
    assert not goal.lacks_zero_shot
    assert goal.least_by_domain == pytest.approx({"painting": 0.6, "photo": 0.675})
    lost, kept = by_domain(0.95, 0.55), by_domain(0.68, 0.61)
    assert lost.h > kept.h and Goal().merit(lost) > Goal().merit(kept)
    assert goal.merit(lost) == pytest.approx(-0.05)
    assert goal.merit(kept) == kept.h
    # The mean over seeds decides of a configuration, and how far all of them miss.
    assert goal.merit(lost, kept) == pytest.approx(-0.02)
    assert goal.missed(by_domain(0.575, 0.5)) == pytest.approx(0.1 + 0.1)
    # A fraction of 1, the same everywhere; what is forgotten in part need not be kept.
    flat = Goal(min_mem_each=0.7).beside(zero_shot, ("sketch", "photo:dog"))
    assert flat.least_by_domain == {"painting": 0.7}
    # What has failed has kept nothing.
    assert goal.missed(Scores(0, 0, 0, {}, {})) == pytest.approx(0.6 + 0.675)


def test_everything_that_compares_follows_each_domain(tmp_path):
    """Epochs, further seeds and the choice; also what was read from the storage again."""
    config = {"min_mem_each": "80%", "trials": 3, "grace_epochs": 1, "race": 2, "tries": 0}
    spec = make_spec(tmp_path, objective="for", **config)
    study, queue = Study(spec), Queue()
    queue.add_fixed(Reference(study, lambda it: queue.add_study(it.study)))
    queue.run("zero-shot", [0.75])
    # Photos are to be kept, and what is made up of them is For: 0.6 of 0.75 is enough.
    for number, value in enumerate((0.62, 0.5, 0.65)):
        queue.run(str(number), [value] * 4)
    told = [trial.value for trial in stored(spec)]
    assert told == pytest.approx([0.62, -0.1, 0.65])
    assert stored(spec)[1].intermediate_values == pytest.approx(dict.fromkeys(range(1, 5), -0.1))
    race = Race(study, lambda _: None)
    assert [record.number for record in race._left] == [2, 0]
    while race.wants:
        run = race.propose()
        value = 0.4 if run.number == 2 else 0.61
        race.end(run, TrialRecord(run.number, {}, 4, "complete", report(4, value).val, 1.0, 1.0))
    restored = Study(spec)
    assert [curve[4] for curve in restored.curves()] == pytest.approx(told)
    for known in (study, restored):
        assert known.goal.least_by_domain == pytest.approx({"photo": 0.6})
        assert best_trial(known.records, known.goal).number == 0


def test_several_looks_are_feasible_by_their_mean_and_worth_their_mean():
    goal = Goal(min_mem=0.8)
    looks = scores(0.7, 0.6), scores(0.95, 0.4)
    assert goal.merit(*looks) == pytest.approx((looks[0].h + looks[1].h) / 2)
    assert goal.merit(looks[0]) < 0


def with_distance(mem, for_, distance):
    return replace(scores(mem, for_), distance=distance)


def test_an_objective_may_name_the_distance_and_h_stands_in_where_none_is_known():
    goal = Goal("mem - 0.5*distance", min_mem=0.5)
    assert goal.measures_distance and not Goal("mem").measures_distance
    looks = [with_distance(0.9, 0.3, 0.8), with_distance(0.7, 0.9, 0.2)]
    assert goal.merit(*looks) == pytest.approx(((0.9 - 0.4) + (0.7 - 0.1)) / 2)
    assert goal.between(looks[0]) == goal.merit(scores(0.9, 0.3)) == scores(0.9, 0.3).h
    # The lowest that a feasible one may have, and below it by what is missing.
    assert goal.merit(with_distance(0.4, 1.0, 0.0)) == pytest.approx(-0.5 - 0.1)
    assert goal.between(with_distance(0.4, 1.0, 0.0)) == pytest.approx(0 - 0.1)
    assert Goal("mem").between(looks[0]) == 0.9


def test_the_distance_is_measured_of_trials_and_further_seeds_that_are_judged_by_it(tmp_path):
    study = Study(make_spec(tmp_path, trials=2, objective="mem-distance"))
    queue = Queue(study)
    for number, left in enumerate((0.9, 0.2)):
        run = queue.suggest(str(number))["run"]
        assert run.distance
        queue.started(str(number))
        queue.on_trial_result(str(number), result(1, 0.4))
        queue.on_trial_complete(str(number), ended(0.6, left))
    first, second = stored(study.spec)
    assert (first.value, second.value) == (pytest.approx(0.6 - 0.9), pytest.approx(0.6 - 0.2))
    assert first.intermediate_values == {1: 0.4, EPOCHS: 0.6}, "between epochs there is H alone"
    race = Race(study, lambda _: None)
    run = race.propose()
    assert run.distance and not Study(make_spec(tmp_path, name="other")).propose().distance
    race.end(run, TrialRecord(run.number, {}, 0, "failed", None, 1.0, 0.0, "diverged"))
    assert study.records[run.number].again[1000].distance == 1, "nothing is known to be gone"
    again = Study(study.spec)
    assert [record.val.distance for record in again.records] == [0.9, 0.2]
    assert again.records[run.number].mean.distance == pytest.approx((0.2 + 1) / 2)


def ended(h, distance):
    told = result(EPOCHS, h)
    epoch = dict(told["event"].epoch)
    epoch["val"] = {**epoch["val"], "distance": distance}
    return {**told, "event": Event("epoch", epoch)}


def test_of_two_objectives_an_infeasible_trial_is_surpassed_by_every_feasible_one():
    goal = Goal(FRONT, min_mem=0.8)
    assert goal.values(scores(0.8, 0.0)) == [0.8, 0.0]
    near, far = goal.values(scores(0.7, 0.9)), goal.values(scores(0.1, 1.0))
    assert 0 > near[0] == near[1] > far[0]


def test_everything_that_compares_follows_the_constraint(tmp_path):
    """Sampler, early stopping, race and choice."""
    config = {"min_mem": 0.5, "trials": 3, "grace_epochs": 1, "reduction_factor": 2, "race": 2}
    study = Study(make_spec(tmp_path, objective="for", **config))
    queue = Queue(study)
    rules = Rules(queue)
    rules.add(study, make_rule(study.spec.config, 4))
    # What is made up is Mem and For alike.
    for number, value in enumerate((0.55, 0.45, 0.6)):
        queue.run(str(number), [value] * 4)
    told = [trial.value for trial in stored(study.spec)]
    assert told == pytest.approx([0.55, -0.05, 0.6])
    assert [c[4] for c in Study(study.spec).curves()] == pytest.approx(told)
    assert best_trial(study.records, study.goal).number == 2
    assert [record.number for record in Race(study, lambda _: None)._left] == [2, 0]


def test_a_share_of_zero_shots_mem_is_known_before_the_first_trial(tmp_path):
    spec = make_spec(tmp_path, min_mem="80%")
    study = Study(spec)
    assert study.goal.lacks_zero_shot
    queue, added = Queue(), []
    queue.add_fixed(Reference(study, lambda it: added.append(queue.add_study(it.study))))
    run = queue.suggest("reference")["run"]
    assert (run.config["method"]["name"], run.tested, run.epochs) == ("zero_shot", False, 1)
    # No trial before it is known.
    assert queue.suggest("x") is None
    queue.started("reference")
    queue.on_trial_complete("reference", result(1, 0.9))
    assert queue.suggest("x")["run"].number == 0 and added
    # A resumed search need not ask again.
    assert Study(spec).goal.least_mem == pytest.approx(0.8 * 0.9)


def test_without_zero_shot_a_share_of_it_ends_the_search(tmp_path):
    queue = Queue()
    queue.add_fixed(Reference(Study(make_spec(tmp_path, min_mem="80%")), lambda _: None))
    queue.propose("reference")
    queue.on_trial_complete("reference", over("failed", "no room"))
    assert isinstance(queue.exception, UserError)
    assert "search.min_mem or search.min_mem_each is a share, failed: no room" in str(
        queue.exception
    )


def test_two_objectives_are_told_with_their_constraint(tmp_path):
    spec = make_spec(tmp_path, objective=FRONT, sampler="nsga2", min_mem=0.5)
    Queue(Study(spec)).run("a", [0.4] * 4)
    (trial,) = stored(spec)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, pytest.approx([-0.1, -0.1]))
    assert json.loads(trial.user_attrs["record"])["val"]["h"] == 0.4
