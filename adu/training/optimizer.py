"""The steps of training: optimiser, learning rate, and a moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch

from adu.methods import Method
from adu.training.config import TrainConfig

ADAM_BETA2 = 0.999


def build_optimizer(model: Method, config: TrainConfig) -> torch.optim.Optimizer | None:
    """The optimiser of what a method trains; None if that is nothing.

    A method's own step sizes are steps of gradient descent, so it has SGD whatever is asked for.
    """
    trainable, own = model.trainable(), model.step_sizes()
    if not trainable:
        return None
    groups: list[dict[str, Any]] = [
        {
            "params": [trainable[name]],
            "lr": step_size.lr,
            "momentum": step_size.momentum,
            "weight_decay": 0.0,
            "scheduled": False,
        }
        for name, step_size in own.items()
    ]
    others = [parameter for name, parameter in trainable.items() if name not in own]
    if others:
        groups.append({"params": others, "scheduled": True})
    lr, decay = config.lr, config.weight_decay
    if config.optimizer == "adamw" and not own:
        betas = (config.momentum, ADAM_BETA2)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, weight_decay=decay)


def optimizer_state(
    optimizer: torch.optim.Optimizer | None, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """What an optimiser remembers of each parameter, by name, on the CPU."""
    remembered = {} if optimizer is None else optimizer.state
    return {
        name: {
            key: value.cpu().clone()
            for key, value in remembered.get(parameter, {}).items()
            if isinstance(value, torch.Tensor)
        }
        for name, parameter in parameters.items()
    }


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer | None,
    parameters: dict[str, torch.nn.Parameter],
    saved: dict[str, dict[str, torch.Tensor]],
) -> None:
    """Gives an optimiser back what `optimizer_state` took."""
    if optimizer is None:
        return
    for name, values in saved.items():
        parameter = parameters[name]
        # AdamW's count of steps stays on the CPU.
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter.device).clone()
            for key, value in values.items()
        }


def learning_rate(config: TrainConfig, epoch: int, share: float = 1.0) -> float:
    """Learning rate of a step: warm-up, then the schedule, which changes from epoch to epoch.

    With a constant warm-up it is that of Dassl, on which the paper's code family stands: the
    cosine begins after the warm-up, at the full rate, and is that of the whole run's length, so
    that it ends above zero.

    Args:
        config: How the run is trained.
        epoch: Number of the epoch, from 0.
        share: How much of the epoch is done after the step.
    """
    if epoch < config.warmup_epochs:
        if config.warmup == "constant":
            return config.warmup_lr
        # However short the run, it gets to the full rate.
        return config.lr * (epoch + share) / min(config.warmup_epochs, config.epochs)
    if config.schedule == "constant":
        return config.lr
    progress = (epoch - config.warmup_epochs) / config.epochs
    return 0.5 * config.lr * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """An exponential moving average of parameters, which can stand in for them."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float | None) -> None:
        self._parameters = parameters if decay is not None else []
        self._decay = decay or 0.0
        self.values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes a step's weights in."""
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter, 1 - self._decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Puts the average in the place of the weights and the other way round."""
        for i, parameter in enumerate(self._parameters):
            trained = parameter.detach().clone()
            parameter.copy_(self.values[i])
            self.values[i] = trained
