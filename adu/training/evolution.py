"""Training without gradients: CMA-ES over a method's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from adu.distributed import rank_and_world_size, sum_over_ranks

WORST = 1e30


class Evolution:
    """CMA-ES (Hansen, 2016), a generation a step.

    Between steps the parameters hold the mean of the search distribution, which starts from what
    they are.

    Example:
        >>> evolution = Evolution([parameter], sigma=0.5, population=10, seed=0)
        >>> list(evolution.step(lambda: {"total": parameter.square().sum()}))
        ['total']
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], sigma: float, population: int, seed: int
    ) -> None:
        self._parameters = list(parameters)
        mean = torch.cat([p.detach().flatten() for p in self._parameters]).double().cpu().numpy()
        # Imported late: it brings scipy.stats, two seconds that no other method needs to wait.
        from cmaes import CMA

        self._search = CMA(mean, sigma, population_size=population, seed=seed)
        self._told: list[list[float]] = []

    @torch.no_grad()
    def step(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Runs a generation.

        Args:
            losses: Gives the loss terms with the parameters as they are; ``total`` is minimised.

        Returns:
            The terms, averaged over the candidates whose loss is finite; over all, if none's is.
        """
        candidates = [self._search.ask() for _ in range(self._search.population_size)]
        found = [self._try(candidate, losses) for candidate in candidates]
        totals = torch.stack([terms["total"] for terms in found]).double()
        # All workers must go the same way, even where their last bits differ.
        told = (sum_over_ranks(totals) / rank_and_world_size()[1]).tolist()
        # A candidate without a finite loss is the worst of all, and no reason to stop.
        self._tell(candidates, [value if np.isfinite(value) else WORST for value in told])
        finite = [terms for terms, value in zip(found, told, strict=True) if np.isfinite(value)]
        counted = finite or found
        return {name: torch.stack([terms[name] for terms in counted]).mean() for name in found[0]}

    @property
    def history(self) -> Tensor:
        """The losses of every candidate so far, (generations, population), float64."""
        return torch.tensor(self._told, dtype=torch.float64).view(-1, self._search.population_size)

    def replay(self, history: Tensor) -> None:
        """Goes through a `history` again, which leads to the same state."""
        for told in history.tolist():
            self._tell([self._search.ask() for _ in told], told)

    def _try(
        self, candidate: np.ndarray, losses: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        self._set(candidate)
        return losses()

    def _tell(self, candidates: list[np.ndarray], told: list[float]) -> None:
        self._search.tell(list(zip(candidates, told, strict=True)))
        self._told.append(told)
        self._set(self._search.mean)

    @torch.no_grad()
    def _set(self, values: np.ndarray) -> None:
        flat = torch.from_numpy(values)
        sizes = [p.numel() for p in self._parameters]
        for parameter, part in zip(self._parameters, flat.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
