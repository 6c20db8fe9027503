"""The arithmetic of the verdict: residuals, distance, intervals and the sentence."""

import pytest

from adu.evidence.attacks import Figures
from adu.evidence.bench import Outcome
from adu.evidence.verdict import (
    distance_of,
    estimate,
    residual,
    standings,
    steps_to_half,
    verdict,
)

TITLES = {"asked": "asked as trained", "probes": "probes on features"}


def outcomes(label, seed=0, asked=0.9, kept=0.9, **probes):
    return [
        Outcome(label, seed, "asked", Figures({"asked": asked}), 1.0),
        Outcome(label, seed, "probes", Figures(probes or {"linear": 0.9}), 1.0),
        Outcome(label, seed, "collateral", Figures(others={"kept accuracy": kept}), 1.0),
    ]


ENDS = [*outcomes("untouched"), *outcomes("knows_nothing", asked=0.1, linear=0.3)]


def judged(*models, ends=ENDS):
    found = standings([*ends, *(outcome for model in models for outcome in model)])
    return found, verdict(found["adu"], found["untouched"], TITLES)


def test_the_ends_of_the_scale():
    found, sentence = judged(outcomes("adu"))
    assert found["untouched"].distance.mean == 1
    assert found["knows_nothing"].distance.mean == 0
    assert sentence.startswith("Not forgotten")


def test_a_model_that_never_saw_it_is_forgotten():
    found, sentence = judged(outcomes("adu", asked=0.15, linear=0.35))
    assert found["adu"].distance.mean == pytest.approx((0.05 / 0.8 + 0.05 / 0.6) / 2)
    assert sentence.startswith("Forgotten, as far as was tested")


def test_the_distance_alone_needs_no_look_at_kept_domains():
    model = [*outcomes("adu", asked=0.15, linear=0.35), *outcomes("adu", 1, asked=0.4, linear=0.7)]
    known = [each for each in (*ENDS, *model) if each.attack != "collateral"]
    assert distance_of(known, "adu") == pytest.approx(judged(model)[0]["adu"].distance.mean)
    narrow = [*outcomes("untouched", asked=0.2, linear=0.4), *ENDS[3:], *model]
    assert distance_of(narrow, "adu") == 1, "of which nothing can be said"


def test_what_a_probe_finds_is_suppressed_and_not_forgotten():
    found, sentence = judged(outcomes("adu", asked=0.1, linear=0.84))
    assert found["adu"].distance.mean == pytest.approx(0.45)
    assert found["adu"].worst[0] == ("probes", "linear")
    assert sentence.startswith("Suppressed, not forgotten: asked as trained, the model shows 0 %")
    assert "probes on features (linear) gets 90 %" in sentence


def test_a_model_that_has_lost_everything_has_not_forgotten_a_domain():
    assert judged(outcomes("adu", asked=0.1, kept=0.2, linear=0.3))[1].startswith("Destroyed")


def test_a_model_pre_trained_without_the_domain_is_the_floor():
    saw_nothing = outcomes("never_saw", asked=0.4, linear=0.4)
    found, _ = judged(saw_nothing, outcomes("adu", asked=0.4, linear=0.4))
    assert found["adu"].distance.mean == 0


def test_attacks_without_room_say_nothing():
    ends = [*outcomes("untouched"), *outcomes("knows_nothing", asked=0.1, linear=0.8)]
    found, _ = judged(outcomes("adu", asked=0.5, linear=0.9), ends=ends)
    assert found["adu"].by_attack.keys() == {"asked"}
    assert found["adu"].distance.mean == pytest.approx(0.5)
    nothing = [*outcomes("untouched", asked=0.2, linear=0.3), *ends[3:]]
    assert judged(outcomes("adu"), ends=nothing)[1].startswith("Nothing can be said")


def test_an_attacks_best_variant_counts_for_every_model():
    ends = [
        *outcomes("untouched", a=0.7, b=0.9),
        *outcomes("knows_nothing", asked=0.1, a=0.3, b=0.1),
    ]
    found, sentence = judged(outcomes("adu", asked=0.1, a=0.6, b=0.2), ends=ends)
    assert found["adu"].by_attack["probes"].mean == pytest.approx(0.5)
    assert found["adu"].distance.mean == pytest.approx(0.25)
    assert "probes on features (a) gets 50 %" in sentence


def test_seeds_give_students_interval():
    found, _ = judged(*(outcomes("adu", seed, asked=a) for seed, a in enumerate((0.1, 0.3, 0.5))))
    # Of 0, 0.25 and 0.5: t(2, 0.975) = 4.3027, s = 0.25.
    assert found["adu"].by_attack["asked"].half_width == pytest.approx(4.3027 * 0.25 / 3**0.5, 1e-4)
    assert estimate([0.3]).half_width is None


def test_residuals_are_cut_off():
    assert (residual(0.05, 0.1, 0.9), residual(0.95, 0.1, 0.9)) == (0, 1)


def test_steps_until_half_is_back():
    curve = [(0, 0.3), (5, 0.5), (20, 0.7)]
    assert steps_to_half(curve, 0.3, 0.9) == 20
    assert steps_to_half(curve, 0.3, 0.7) == 5
    assert steps_to_half(curve[:2], 0.3, 0.9) is None
