"""Samplers by name, with Optuna itself."""

from __future__ import annotations

import optuna
import pytest

from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.studies.samplers import SAMPLERS, SamplerConfig, check_sampler, make_sampler
from pipeline.studies.space import Parameter, suggest

BASE = RunConfig(forget=("sketch",))
SPACE = {
    "train.lr": Parameter(low=0.01, high=1, log=True, default=0.1),
    "method.instapg": Parameter(choices=(True, False), default=True),
    "method.instapg_layer": Parameter(low=1, high=3, default=2, when={"method.instapg": (True,)}),
}


@pytest.mark.parametrize(
    ("name", "objectives"),
    [(name, n) for name in SAMPLERS for n in (1, 2) if (name, n) != ("cmaes", 2)],
)
def test_every_sampler_proposes_in_a_conditional_space(name, objectives):
    study = optuna.create_study(directions=["maximize"] * objectives)
    for number in range(6):
        study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=True)
        trial = study.ask()
        suggest(trial, SPACE, BASE)
        study.tell(trial, [number / 10] * objectives)
    assert len({trial.params["train.lr"] for trial in study.trials}) > 2


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsga2", "random"])
def test_a_sampler_that_is_made_anew_proposes_the_same(name):
    def proposals():
        study = optuna.create_study(direction="maximize")
        for number in range(5):
            study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=False)
            study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), number)
        return [trial.params for trial in study.trials]

    assert proposals() == proposals()


def test_any_sampler_of_optunas_is_made_with_its_options():
    made = make_sampler(SamplerConfig(name="cmaes", options={"lr_adapt": True}), 0, 5, False)
    assert type(made).__name__ == "CmaEsSampler"
    assert type(make_sampler("optuna.samplers.QMCSampler", 0, 5, False)).__name__ == "QMCSampler"


@pytest.mark.parametrize(
    ("choice", "objectives", "says"),
    [
        ("best", 1, "search.sampler 'best': unknown (known: tpe, gp, cmaes, "),
        ("optuna.trial.Trial", 1, "is no subclass of Optuna's BaseSampler"),
        (SamplerConfig(name="tpe", options={"gama": 1}), 1, "tpe with options {'gama': 1}: cannot"),
        ("cmaes", 2, "search.sampler cmaes: cannot be used: "),
    ],
)
def test_a_sampler_that_cannot_be_used_is_refused(choice, objectives, says):
    with pytest.raises(UserError) as error:
        check_sampler(choice, SPACE, BASE, objectives)
    assert says in str(error.value)
