"""What a replayed search learns from the studies of other forget sets.

N configurations, D coordinates of a configuration, O other forget sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from pipeline.studies.space import Parameter, Space

# Each other study has tried the defaults and so many others, the same ones.
SIBLING_TRIALS = 10
# Standard deviations that an untried configuration is given the benefit of.
OPTIMISM = 1.8


class Siblings:
    """The other studies: what they have tried, and what they saw of it.

    Args:
        h_ONE: Validation H of all configurations on the other forget sets, by epoch.
        seed: Which ones they have tried.
    """

    def __init__(self, h_ONE: np.ndarray, seed: int) -> None:
        n = h_ONE.shape[1]
        order = 1 + np.random.default_rng(seed).permutation(n - 1)
        self.tried = [0, *order[: SIBLING_TRIALS - 1].tolist()]
        self.h_ON = h_ONE[:, self.tried, -1]

    def bests(self) -> list[int]:
        """What was best for each of them."""
        return [self.tried[place] for place in self.h_ON.argmax(axis=1)]

    def portfolio(self) -> list[int]:
        """As many that were best over all of them, by the sum of their ranks."""
        ranks_ON = self.h_ON.argsort(axis=1).argsort(axis=1)
        order = ranks_ON.sum(axis=0).argsort()[::-1]
        return [self.tried[place] for place in order[: len(self.h_ON)]]

    def prior(self, points_ND: np.ndarray) -> np.ndarray:
        """What they make expect of every configuration, in standard deviations of theirs."""
        spread_O1 = self.h_ON.std(axis=1, keepdims=True) + 1e-9
        z_ON = (self.h_ON - self.h_ON.mean(axis=1, keepdims=True)) / spread_O1
        model = _fitted(points_ND[self.tried], z_ON.mean(axis=0))
        return np.asarray(model.predict(points_ND))


def most_promising(
    points_ND: np.ndarray,
    prior_N: np.ndarray,
    tried: Sequence[int],
    h: Sequence[float],
    left: Sequence[int],
) -> int:
    """The configuration that a Gaussian process on what the prior leaves open expects most of.

    As in Vizier: the other studies' model is the mean, and only the rest is learned here.

    Args:
        points_ND: All configurations (`coordinates`).
        prior_N: What is expected of them beforehand.
        tried: Those that have been tried.
        h: What they came to.
        left: Those to choose from.
    """
    values = np.array(h)
    z = (values - values.mean()) / (values.std() + 1e-9) if len(values) > 1 else values * 0
    model = _fitted(points_ND[list(tried)], z - prior_N[list(tried)])
    mean, sd = model.predict(points_ND[list(left)], return_std=True)
    return left[int(np.argmax(prior_N[list(left)] + mean + OPTIMISM * sd))]


def coordinates(space: Space, configurations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Configurations as points_ND between 0 and 1, choices one by one."""
    return np.array(
        [
            [
                value
                for path, parameter in space.items()
                for value in _coordinates(parameter, params.get(path))
            ]
            for params in configurations
        ],
        dtype=float,
    )


def _coordinates(parameter: Parameter, value: Any) -> list[float]:
    if parameter.choices is not None:
        return [float(value == choice) for choice in parameter.choices]
    if value is None:
        return [0.0]
    assert parameter.low is not None and parameter.high is not None
    scale = np.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    return [float((scale(value) - low) / (high - low))]


def _fitted(points_ND: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    # What is known of the demo: noise of about half of the spread. Four to forty points teach
    # no length scale.
    kernel = ConstantKernel(1.0) * Matern(0.5, nu=2.5) + WhiteKernel(0.25)
    return GaussianProcessRegressor(kernel, optimizer=None).fit(points_ND, values)
