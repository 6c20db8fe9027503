"""Optuna's samplers, by name or import path, with their options."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from pydantic import Field

from adu.config import StrictModel
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.studies.imported import imported
from pipeline.studies.space import Space, suggest

GRID = "grid"

SAMPLERS: dict[str, type[BaseSampler]] = {
    "tpe": TPESampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
    "nsga2": NSGAIISampler,
    "nsga3": NSGAIIISampler,
    "random": RandomSampler,
    # Its trials are enqueued; there is nothing left to propose.
    GRID: RandomSampler,
}


class SamplerConfig(StrictModel):
    """Which of Optuna's samplers proposes."""

    name: str = Field(description="see search.sampler")
    options: dict[str, Any] = Field({}, description="more options of the sampler's class")


def sampler_config(choice: str | SamplerConfig) -> SamplerConfig:
    """What a name alone stands for."""
    return SamplerConfig(name=choice) if isinstance(choice, str) else choice


def make_sampler(
    choice: str | SamplerConfig, seed: int, startup_trials: int, conditional: bool
) -> BaseSampler:
    """Makes a sampler.

    Args:
        choice: Which.
        seed: Of its random numbers.
        startup_trials: Random trials before it learns; the population of NSGA-II and NSGA-III.
        conditional: Whether some options are searched only where others have certain values.

    Raises:
        UserError: If there is no such sampler, or it does not take the options.
    """
    config = sampler_config(choice)
    sampler_class = SAMPLERS.get(config.name) or _imported(config.name)
    usual: dict[str, Any] = {
        "seed": seed,
        "n_startup_trials": startup_trials,
        "population_size": max(startup_trials, 2),
        "multivariate": True,
        "group": conditional,
        # Trials that run elsewhere count as bad ones, so that none is proposed twice.
        "constant_liar": True,
        "warn_independent_sampling": False,
    }
    if sampler_class is TPESampler:
        # It warns of the option itself.
        del usual["warn_independent_sampling"]
    taken = inspect.signature(sampler_class.__init__).parameters
    options = {name: value for name, value in usual.items() if name in taken} | config.options
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return sampler_class(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise _refusal(config, error) from error


def check_sampler(
    choice: str | SamplerConfig, space: Space, base: RunConfig, n_objectives: int
) -> None:
    """Sees whether a sampler takes its options, and proposes for so many objectives.

    Raises:
        UserError: If it does not.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize"] * n_objectives)
    study.sampler = make_sampler(choice, 0, 1, any(parameter.when for parameter in space.values()))
    try:
        for number in range(2):
            trial = study.ask()
            suggest(trial, space, base)
            study.tell(trial, [0.1 * number] * n_objectives)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _refusal(sampler_config(choice), error) from error


def _refusal(config: SamplerConfig, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    options = f" with options {config.options}" if config.options else ""
    return UserError(f"search.sampler {config.name}{options}: cannot be used: {reason}")


def _imported(name: str) -> type[BaseSampler]:
    known = f"known: {', '.join(SAMPLERS)}, or an import path such as optuna.samplers.QMCSampler"
    found = imported(name, "search.sampler", known)
    if not (inspect.isclass(found) and issubclass(found, BaseSampler)):
        raise UserError(f"search.sampler '{name}': is no subclass of Optuna's BaseSampler")
    return found
