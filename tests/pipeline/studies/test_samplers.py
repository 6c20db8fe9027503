"""Samplers by name, with Optuna itself."""

from __future__ import annotations

from typing import get_args

import optuna
import pytest

from adu.training.config import RunConfig
from pipeline.studies.samplers import SamplerName, make_sampler
from pipeline.studies.space import Parameter, suggest

BASE = RunConfig(forget=("sketch",))
SPACE = {
    "train.lr": Parameter(low=0.01, high=1, log=True, default=0.1),
    "method.instapg": Parameter(choices=(True, False), default=True),
    "method.instapg_layer": Parameter(low=1, high=3, default=2, when={"method.instapg": (True,)}),
}


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_sampler_proposes_in_a_conditional_space(name, objectives):
    study = optuna.create_study(directions=["maximize"] * objectives)
    for number in range(6):
        study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=True)
        trial = study.ask()
        suggest(trial, SPACE, BASE)
        study.tell(trial, [number / 10] * objectives)
    assert len({trial.params["train.lr"] for trial in study.trials}) > 2


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random"])
def test_a_sampler_that_is_made_anew_proposes_the_same(name):
    def proposals():
        study = optuna.create_study(direction="maximize")
        for number in range(5):
            study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=False)
            study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), number)
        return [trial.params for trial in study.trials]

    assert proposals() == proposals()
