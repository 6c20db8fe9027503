"""Search spaces: what may be written, and what Optuna makes of it."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from adu.config import StrictModel, parse_config
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.studies.space import (
    Parameter,
    SpaceConfig,
    check_space,
    configure,
    defaults,
    fit,
    grid,
    searched,
    suggest,
)

BASE = RunConfig(forget=("sketch",))
RANGE = {"low": 0.01, "high": 1, "log": True, "default": 0.1}


class Holder(StrictModel):
    """What holds a space, as `SearchConfig` does."""

    space: SpaceConfig


def ask(space):
    """One proposal of Optuna's: its trial, and the values."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    return trial, suggest(trial, space, BASE)


def test_integers_are_searched_as_integers_whatever_they_look_like():
    space = {
        "method.gamma": Parameter(low=1, high=30, log=True, default=30),
        "method.instapg_layer": Parameter(low=1, high=3, default=2),
        "method.n_ctx": Parameter(choices=(2, 8), default=8),
    }
    trial, values = ask(space)
    assert trial.distributions == {
        "method.gamma": FloatDistribution(1.0, 30.0, log=True),
        "method.instapg_layer": IntDistribution(1, 3),
        "method.n_ctx": CategoricalDistribution((2, 8)),
    }
    assert values == trial.params


CONDITIONAL = {
    "method.instapg": Parameter(choices=(True, False), default=True),
    "method.instapg_layer": Parameter(low=1, high=3, default=2, when={"method.instapg": (True,)}),
}


def test_an_option_is_searched_only_where_it_means_anything():
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    proposals = [suggest(study.ask(), CONDITIONAL, BASE) for _ in range(20)]
    for values in proposals:
        assert ("method.instapg_layer" in values) == values["method.instapg"]
    assert {values["method.instapg"] for values in proposals} == {True, False}
    assert defaults(CONDITIONAL) == {"method.instapg": True, "method.instapg_layer": 2}
    off = {**CONDITIONAL, "method.instapg": Parameter(choices=(True, False), default=False)}
    assert defaults(off) == {"method.instapg": False}


def test_a_plain_value_is_fixed_and_optuna_does_not_hear_of_it():
    config = parse_config(Holder, {"space": {"method.depth": 2, "train.lr": RANGE}}, "file.yaml")
    trial, values = ask(config.space)
    assert values["method.depth"] == 2
    assert trial.params.keys() == {"train.lr"}
    assert searched(config.space, values).keys() == {"train.lr"}


def test_the_grid_has_every_combination_that_differs():
    space = {**CONDITIONAL, "train.lr": Parameter(low=0.01, high=1, log=True, default=0.1)}
    points = list(grid(space, BASE, points=3))
    # Three layers with InstaPG and one without, each with three learning rates.
    assert len(points) == 12
    assert sorted({values["train.lr"] for values in points}) == pytest.approx([0.01, 0.1, 1])


def test_values_of_another_study_are_brought_into_the_space():
    space = {
        "train.lr": Parameter(low=0.1, high=1, default=0.2),
        "method.n_ctx": Parameter(choices=(2, 8), default=8),
        "method.gamma": Parameter(low=1, high=2, default=1),
    }
    found = fit(space, {"train.lr": 3.0, "method.n_ctx": 4, "method.depth": 9})
    assert found == {"train.lr": 1, "method.n_ctx": 8, "method.gamma": 1}


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ({"method.n_ctx": (2,)}, "when names 'method.n_ctx', which must stand above it"),
        ({"train.lr": (0.1,)}, "when train.lr = 0.1: must be choices of train.lr (it has a range)"),
        ({"method.instapg": (3,)}, "must be choices of method.instapg (it has True, False)"),
    ],
)
def test_a_condition_must_be_a_choice_of_an_option_above(when, says):
    space = {
        "train.lr": Parameter(low=0.1, high=1, default=0.2),
        "method.instapg": Parameter(choices=(True, False), default=True),
        "method.instapg_layer": Parameter(low=1, high=3, default=2, when=when),
    }
    with pytest.raises(UserError) as error:
        check_space(space, BASE)
    assert str(error.value).startswith("space.method.instapg_layer: ")
    assert says in str(error.value)


def test_parameters_are_set_by_their_path():
    run = configure(BASE, {"method.lambda": 0.5, "train.lr": 0.1})
    assert (run.method.lambda_, run.train.lr) == (0.5, 0.1)
    assert run.method.gamma == BASE.method.gamma
    assert defaults({"train.lr": Parameter(low=0.1, high=1, default=0.2)}) == {"train.lr": 0.2}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"low": 1, "default": 1}, "must have choices, or low and high"),
        ({"low": 1, "high": 2, "choices": [1], "default": 1}, "either choices or a range"),
        ({"low": 2, "high": 1, "default": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True, "default": 1}, "above 0 on a logarithmic scale"),
        ({"low": 1, "high": 2, "default": 3}, "default 3 must be from 1 to 2"),
        ({"choices": [2, 4], "default": 3}, "default 3 must be one of [2, 4]"),
        ({"low": 1, "high": 2, "step": 1, "default": 1}, "unknown field 'step'"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(values, says):
    with pytest.raises(UserError) as error:
        parse_config(Parameter, values, "file.yaml")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("path", "parameter", "says"),
    [
        ("method.gama", Parameter(low=1, high=2, default=1), "unknown field 'method.gama'"),
        ("method.gamma", Parameter(low=-1, high=2, default=1), "method.gamma = -1"),
        ("method.n_ctx", Parameter(choices=(2, "many"), default=2), "method.n_ctx = 'many'"),
        ("train.lr", Parameter(low=0, high=2, default=1), "train.lr = 0"),
    ],
)
def test_a_value_that_no_run_accepts_is_refused(path, parameter, says):
    with pytest.raises(UserError) as error:
        check_space({path: parameter}, BASE)
    assert str(error.value).startswith(f"space.{path}: ")
    assert says in str(error.value)
