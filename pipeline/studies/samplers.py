"""Optuna's samplers, by name."""

from __future__ import annotations

import warnings
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

SamplerName = Literal["tpe", "gp", "nsga2", "random", "grid"]


def make_sampler(
    name: SamplerName, seed: int, startup_trials: int, conditional: bool
) -> BaseSampler:
    """Makes a sampler.

    Args:
        name: Which.
        seed: Of its random numbers.
        startup_trials: Random trials before it learns; the population of NSGA-II.
        conditional: Whether some options are searched only where others have certain values.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(
                seed=seed,
                n_startup_trials=startup_trials,
                multivariate=True,
                group=conditional,
                # Trials that run elsewhere count as bad ones, so that none is proposed twice.
                constant_liar=True,
            )
        if name == "gp":
            return GPSampler(
                seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
            )
        if name == "nsga2":
            return NSGAIISampler(population_size=max(startup_trials, 2), seed=seed)
    # A grid's trials are enqueued; there is nothing left to propose.
    return RandomSampler(seed=seed)
