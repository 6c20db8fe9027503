"""The best configurations are run again before one is chosen: one look may have been luck."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.executors.run import AGAIN
from pipeline.studies.race import FIRST_SEED, FIRST_TRY, Race
from pipeline.studies.selection import best_trial, luckiest_seed
from pipeline.studies.study import Study
from tests.pipeline.studies.made_up import EPOCHS, Queue, make_spec, over, result

# The defaults are the third best.
FIRST_LOOKS = [0.7, 0.9, 0.8, 0.5, 0.1]


def searched(folder, tries=0, **config):
    """A study whose trials have ended, and a queue that races its best ones."""
    study = Study(make_spec(folder, trials=len(FIRST_LOOKS), tries=tries, **config))
    queue = Queue(study)
    for number, h in enumerate(FIRST_LOOKS):
        queue.run(str(number), [0.5, 0.5, 0.5, h])
    return study, queue


def race(study, queue, h_by_trial):
    """Runs a race; returns which trial was run with which seed, in order."""
    queue.add_fixed(Race(study, lambda _: None))
    ran = []
    while isinstance(config := queue.suggest(f"again-{len(ran)}"), dict):
        run = config["run"]
        assert run.stage == AGAIN
        ran.append((run.number, run.config["train"]["seed"] - FIRST_SEED))
        queue.started(f"again-{len(ran) - 1}")
        last = h_by_trial[run.number]
        told = over("failed", "diverged") if last is None else result(EPOCHS, last)
        queue.on_trial_complete(f"again-{len(ran) - 1}", told)
    return ran


def test_the_worst_is_dropped_after_each_round_and_the_mean_decides(tmp_path):
    study, queue = searched(tmp_path)
    # The first look's winner had luck.
    assert race(study, queue, {1: 0.2, 2: 0.8, 0: 0.6}) == [(1, 0), (2, 0), (0, 0), (2, 1), (0, 1)]
    best = best_trial(study.records, study.goal)
    assert (best.number, len(best.looks)) == (2, 3)
    assert best.mean.h == pytest.approx(0.8)
    # What was dropped, or was seen once, is not chosen, however lucky it was.
    lucky = study.records[1]
    assert lucky.mean.h == pytest.approx(0.55) and lucky.val.h == 0.9


def test_a_race_that_was_killed_goes_on_where_it_was(tmp_path):
    study, queue = searched(tmp_path)
    whole = race(study, queue, {1: 0.2, 2: 0.8, 0: 0.6})
    again = Study(study.spec)
    assert again.records == study.records
    assert race(again, Queue(again), {}) == []
    # Of another study, after its first two runs.
    (tmp_path / "killed").mkdir()
    study, queue = searched(tmp_path / "killed")
    contest = Race(study, lambda _: None)
    queue.add_fixed(contest)
    for number, h in ((1, 0.2), (2, 0.8)):
        assert queue.propose(str(number)) == f"sketch/{number} again, seed {FIRST_SEED}"
        queue.on_trial_complete(str(number), result(EPOCHS, h))
    resumed = Study(study.spec)
    assert race(resumed, Queue(resumed), {0: 0.6, 2: 0.8}) == whole[2:]


def test_who_takes_part_and_who_is_dropped_does_not_depend_on_a_kill(tmp_path):
    # Its mean falls below a trial that was never run again; later its rival's does.
    study, queue = searched(tmp_path, race=3)
    contest = Race(study, lambda _: None)
    queue.add_fixed(contest)
    for number, h in enumerate((0.0, 0.6, 0.5, 0.1)):
        queue.propose(str(number))
        queue.on_trial_complete(str(number), result(EPOCHS, h))
    left = sorted(each.number for each in contest._left)
    again = Study(study.spec)
    assert race(again, Queue(again), {2: 0.1, 0: 0.5}) in ([(2, 1)], [(0, 1)])
    assert sorted(each.number for each in Race(again, lambda _: None)._left) == [0, 1, 2]
    assert left == [0, 2]
    assert not any(again.records[number].again for number in (3, 4))


def test_a_configuration_that_fails_with_another_seed_is_worth_nothing_there(tmp_path):
    study, queue = searched(tmp_path, race=2)
    assert race(study, queue, {1: None, 0: 0.4}) == [(1, 0), (0, 0)]
    best = best_trial(study.records, study.goal)
    assert (best.number, study.records[1].mean.h) == (0, 0.45)


def test_without_a_race_one_look_decides(tmp_path):
    study, queue = searched(tmp_path, race=1)
    assert race(study, queue, {}) == []
    assert best_trial(study.records, study.goal).number == 1


def test_a_trial_that_was_stopped_early_takes_no_part(tmp_path):
    study = Study(make_spec(tmp_path, trials=2, tries=0))
    queue = Queue(study)
    queue.run("a", [0.9])
    queue.run("b", [0.1] * EPOCHS)
    assert race(study, queue, {1: 0.2}) == [(1, 0)]
    assert best_trial(study.records, study.goal).number == 1


def test_the_defaults_have_a_seat_whatever_their_first_look(tmp_path):
    # The second best makes room for them.
    study, queue = searched(tmp_path, race=2)
    assert race(study, queue, {1: 0.2, 0: 0.8}) == [(1, 0), (0, 0)]
    best = best_trial(study.records, study.goal)
    assert (best.number, best.mean.h) == (0, pytest.approx(0.75))


def test_the_winner_is_run_with_more_seeds_for_its_models_and_not_for_the_choice(tmp_path):
    study, queue = searched(tmp_path, race=2, tries=3)
    h = {1: 0.2, 0: 0.8}
    first = FIRST_TRY - FIRST_SEED
    tries = [(0, first), (0, first + 1), (0, first + 2)]
    assert race(study, queue, h) == [(1, 0), (0, 0), *tries]
    best = best_trial(study.records, study.goal)
    assert (best.number, best.mean.h) == (0, pytest.approx(0.75)), "tries are in no mean"
    assert luckiest_seed(best, 0, study.goal) == FIRST_SEED
    study.keep_again(best, FIRST_TRY + 1, replace(best.val, h=0.95), is_try=True)
    assert luckiest_seed(best, 0, study.goal) == FIRST_TRY + 1

    # Another process knows all of it, and does what is missing alone.
    again = Study(study.spec)
    assert again.records == study.records
    assert race(again, Queue(again), {}) == []
    more = Study(replace(study.spec, config=study.spec.config.model_copy(update={"tries": 4})))
    assert race(more, Queue(more), h) == [(0, first + 3)]


def test_whoever_beats_a_winner_that_was_tried_is_chosen(tmp_path):
    study, queue = searched(tmp_path, race=2, tries=3)
    race(study, queue, {1: 0.2, 0: 0.8})
    # The search goes on, and finds a better one.
    wider = study.spec.config.model_copy(update={"trials": len(FIRST_LOOKS) + 1})
    study = Study(replace(study.spec, config=wider))
    queue = Queue(study)
    queue.run("new", [0.5, 0.5, 0.5, 0.99])
    ran = race(study, queue, {5: 0.9, 0: 0.8, 1: 0.1})
    assert best_trial(study.records, study.goal).number == 5
    assert [number for number, seed in ran if seed >= FIRST_TRY - FIRST_SEED] == [5] * 3
