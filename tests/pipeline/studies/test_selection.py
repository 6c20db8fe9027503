"""Which trial is chosen, and which none surpasses."""

from pipeline.studies.goal import Goal
from pipeline.studies.selection import best_seed, best_trial, pareto_front
from tests.pipeline.records import scores, trial


def test_the_best_trial_is_a_complete_one_if_there_is_any():
    stopped = trial(0, 0.9, 0.9, "stopped")
    assert best_trial([stopped], Goal()) is stopped
    good, worse = trial(1, 0.6, 0.6), trial(2, 0.5, 0.5)
    assert best_trial([stopped, good, worse], Goal()) is good
    assert best_trial([], Goal()) is None
    assert best_trial([trial(3, 0, 0, "failed")], Goal()) is None


def test_with_a_least_mem_the_best_is_one_that_keeps_it():
    careful, bold, cruel = trial(0, 0.9, 0.5), trial(1, 0.8, 0.7), trial(2, 0.5, 0.9)
    trials = [careful, bold, cruel]
    assert best_trial(trials, Goal()) is bold
    assert best_trial(trials, Goal(min_mem=0.85)) is careful
    assert best_trial(trials, Goal("for", min_mem=0.5)) is cruel
    # Nobody keeps as much: the one that keeps the most.
    assert best_trial(trials, Goal(min_mem=0.95)) is careful


def test_the_pareto_front_has_what_nothing_surpasses():
    front = [trial(0, 0.5, 0.9), trial(1, 0.8, 0.7), trial(2, 0.9, 0.5)]
    inside = [trial(3, 0.5, 0.8), trial(4, 0.7, 0.7), trial(5, 0.95, 0.95, "stopped")]
    assert pareto_front([*inside, *reversed(front)]) == front


def test_the_model_to_take_is_the_seeds_that_is_best_on_validation_images():
    looks = [scores(0.9, 0.5), scores(0.7, 0.8), scores(0.7, 0.8)]
    assert best_seed(looks, Goal()) == 1
    assert best_seed(looks, Goal(min_mem=0.8)) == 0
    assert best_seed(looks, Goal(min_mem="80%", zero_shot_mem=0.95)) == 0
