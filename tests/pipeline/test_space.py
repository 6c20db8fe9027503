"""Search spaces: what may be written, and what Optuna makes of it."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from adu.config import parse_config
from adu.errors import UserError
from adu.trainer import RunConfig
from pipeline.space import Parameter, check_space, configure, defaults, distributions

BASE = RunConfig(forget=("sketch",))


def test_integers_are_searched_as_integers_whatever_they_look_like():
    space = {
        "method.gamma": Parameter(low=1, high=30, log=True, default=30),
        "method.instapg_layer": Parameter(low=1, high=3, default=2),
        "method.n_ctx": Parameter(choices=(2, 8), default=8),
    }
    assert distributions(space, BASE) == {
        "method.gamma": FloatDistribution(1.0, 30.0, log=True),
        "method.instapg_layer": IntDistribution(1, 3),
        "method.n_ctx": CategoricalDistribution((2, 8)),
    }


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
