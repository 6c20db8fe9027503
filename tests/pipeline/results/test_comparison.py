"""What a search says of itself: differences with their intervals, noise, and whether more helps."""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev

import pytest

from adu.methods.adu import AduConfig
from pipeline.results.comparison import (
    Difference,
    difference,
    handed_out,
    lost,
    lost_domains,
    noise,
    outlook,
    verdict,
    within_noise,
)
from pipeline.studies.goal import Goal
from tests.pipeline import records
from tests.pipeline.records import final, scores, study, trial


def told(*best):
    made = study()
    made.finals["best"] = final("best", *best)
    return verdict(made)


def test_an_interval_is_students():
    # Table value for two degrees of freedom: 4.303.
    low, high = Difference((1.0, 2.0, 3.0)).interval
    assert (low, high) == (pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3), pytest.approx(4 - low))
    assert Difference((1.0,)).interval is None


def test_a_search_that_gained_nothing_says_so():
    # The defaults have H 78.75 and 74.67, seed by seed.
    better = told((0.95, 0.9), (0.9, 0.9))
    assert better.startswith("sketch: the search beat the paper's defaults (+14.5 points of H, ")
    assert "95 % interval +4.0 to +25.0, 2 seeds)" in better
    assert "did NOT beat the paper's defaults (-2" in told((0.5, 0.5), (0.5, 0.5))
    assert "by less than is certain" in told((0.95, 0.95), (0.7, 0.65))
    same = study()
    same.finals["best"] = same.finals["paper_defaults"]
    assert "found nothing better than the paper's defaults and chose them" in verdict(same)


def test_the_model_to_take_is_told_with_its_own_figures():
    made = study()
    made.finals["best"] = final("best", (0.95, 0.9), (0.9, 0.9))
    assert "The model to take" not in verdict(made), "a record of an earlier version"
    made.finals["best"].val_by_seed = (scores(0.8, 0.8), scores(0.7, 0.95))
    assert "The model to take is seed 1's, the best on validation images: H 90.0" in verdict(made)
    made.goal = Goal("mem")
    assert "The model to take is seed 0's" in verdict(made)


def test_the_model_to_take_may_be_of_the_search_itself():
    made = study()
    made.finals["best"] = final("best", (0.95, 0.9), (0.9, 0.9))
    made.finals["best"].val_by_seed = (scores(0.8, 0.8), scores(0.7, 0.95))
    again = made.finals["best_again"] = final("best_again", (0.9, 0.8))
    again.seeds, again.val_by_seed = (1001,), (scores(0.75, 0.75),)
    assert handed_out(made)[0] == 1
    again.val_by_seed = (scores(0.9, 0.9),)
    assert handed_out(made) == (1001, again.test)
    assert "The model to take is seed 1001's, the best on validation images: H 84.7" in verdict(
        made
    )
    gain = difference(made, "paper_defaults")
    assert len(gain.by_seed) == 2, "a lucky seed proves nothing"


def test_what_it_started_from_is_called_by_its_name():
    made = study()
    stable = made.finals["paper_defaults"].run.model_copy(
        update={"method": AduConfig(recipe="stable")}
    )
    made.finals["paper_defaults"].run = stable
    made.finals["paper"] = final("paper_defaults", (0.3, 0.9), (0.3, 0.9))
    assert "the defaults of recipe 'stable'" in verdict(made)
    assert "it beat the paper's own (" in verdict(made)
    assert made.finals["paper_defaults"].label == "ADU, stable defaults"


def test_it_is_told_when_the_defaults_were_not_tested():
    made = study()
    del made.finals["paper_defaults"]
    assert "the search was not tested against its defaults; it beat the Baseline (" in verdict(made)


def test_only_seeds_that_both_have_are_compared():
    # One seed of the best against two of the defaults, and one of the Baseline.
    assert len(difference(study(), "paper_defaults").by_seed) == 1
    assert "points of H, 1 seed); it beat the Baseline (" in verdict(study())


def test_the_noise_is_pooled_over_all_that_was_run_with_several_seeds():
    made = study()
    assert noise(made) == pytest.approx(100 * stdev([s.h for s in defaults_of(made)]))
    made.trials[2].again[1000] = scores(0.9, 0.4)
    ours = stdev([s.h for s in made.trials[2].looks])
    both = (ours**2 + stdev([s.h for s in defaults_of(made)]) ** 2) / 2
    assert noise(made) == pytest.approx(100 * both**0.5)
    del made.finals["paper_defaults"], made.trials[2].again[1000]
    assert noise(made) is None and within_noise(made) is None


def defaults_of(made):
    return made.finals["paper_defaults"].test_by_seed


def test_what_is_near_the_winner_is_counted_but_not_what_keeps_too_little():
    made = study()
    # H of 84.7 against noise of 2.9: 83 is within it, 64 is not, nor is a stopped trial.
    made.trials += [trial(4, 0.9, 0.77), trial(5, 0.72, 1.0)]
    assert within_noise(made) == (3, 4)
    made.goal = Goal(min_mem=0.8)
    assert within_noise(made) == (2, 3)


def test_it_is_told_when_nothing_kept_to_what_was_asked_for():
    made = study()
    assert "No configuration kept" not in verdict(made)
    made.goal = Goal(min_mem=0.99, max_forget_accuracy=0.5)
    said = verdict(made)
    assert ". No configuration kept to search.min_mem and search.max_forget_accuracy on" in said
    assert "points over seeds. " in said, "there is no trial to count"


def test_whether_more_trials_would_help_is_told_by_the_last_third():
    made = study()
    made.trials = made.trials[:3]
    assert outlook(made) == "Whether more trials would help cannot be told yet"
    made.trials = [trial(n, 0.9, 0.5) for n in range(4)] + [trial(4, 0.9, 0.8), trial(5, 0.9, 0.6)]
    assert outlook(made).startswith("More trials are likely to help: the last third of them")
    made.trials.reverse()
    assert outlook(made).startswith("More trials are not likely to help")
    # Trials that were stopped early are trials that brought nothing.
    stopped = [trial(n, 0.5, 0.5, "stopped") for n in range(6, 10)]
    made.trials = [made.trials[0], *stopped]
    assert outlook(made).startswith("More trials are not likely to help")


def test_whether_more_trials_would_help_goes_by_those_that_kept_to_what_was_asked_for():
    made = study()
    made.goal = Goal(min_mem=0.8)
    made.trials = [trial(n, 0.5, 0.9) for n in range(4)] + [trial(4, 0.9, 0.5), trial(5, 0.5, 0.9)]
    assert outlook(made).endswith("none but the last third of them kept to search.min_mem")
    made.trials[0] = trial(0, 0.9, 0.5)
    assert outlook(made).startswith("More trials are not likely to help")
    made.trials = [trial(n, 0.5, 0.9) for n in range(6)]
    assert outlook(made).startswith("Whether more trials would help cannot be told")


def test_what_is_lost_is_a_share_of_zero_shots_or_what_was_asked_for():
    made = study(best=(0.8, 0.9))
    # Zero-shot has 94 %.
    assert not lost(made, made.finals["best"])
    made.goal = Goal(min_mem="90%")
    assert lost(made, made.finals["best"])
    made.goal = Goal(min_mem=0.8)
    assert not lost(made, made.finals["best"])
    assert not lost(records.study(), made.finals["zero_shot"])


def with_painting(scores, accuracy):
    return replace(scores, accuracy_by_domain={**scores.accuracy_by_domain, "painting": accuracy})


def test_a_domain_that_went_with_the_forget_domain_is_named_whatever_the_mean_says():
    """Like sketches when cartoons are forgotten: Mem is 80 % of zero-shot's, one domain is gone."""
    made = study(best=(0.8, 0.9))
    for stage, accuracy in (("zero_shot", 0.9), ("best", 0.3)):
        made.finals[stage].test = with_painting(made.finals[stage].test, accuracy)
    best = made.finals["best"]
    best.val_by_seed, best.test_by_seed = best.test_by_seed, (best.test,)
    assert lost(made, best) and lost_domains(made, best.test) == ["painting"]
    said = verdict(made)
    assert "H 84.7; it has LOST painting (30 %)." in said
    assert said.endswith("It LOST what it should keep: painting.")
    # As much as was asked for, and what is forgotten in part.
    made.goal = Goal(min_mem="30%")
    assert not lost(made, best)
    made.goal = Goal(min_mem="30%", min_mem_each="40%")
    assert lost(made, best) and lost_domains(made, best.test) == ["painting"]
    made.goal = Goal(min_mem_each=0.3)
    assert not lost(made, best)
    made.goal, made.forget = Goal(), ("sketch", "painting:dog")
    assert not lost(made, best)
