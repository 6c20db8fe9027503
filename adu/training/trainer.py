"""The one training loop: single process or many, without a word about who started them.

Tensor names carry their shape: B images of the global batch, C classes, D domains, S steps of an
epoch, T loss terms.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adu.context import Context
from adu.data.decoded import ImageSet, balanced_batches, plain_batches
from adu.distributed import average_gradients, gather_batch
from adu.evaluation.evaluate import TestResult, evaluate_images, evaluate_test
from adu.evaluation.metrics import Scores
from adu.methods import Output
from adu.models.precision import autocast
from adu.training.config import RunConfig, TrainConfig
from adu.training.evolution import Evolution
from adu.training.feed import Feed
from adu.training.optimizer import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    optimizer_state,
    restore_optimizer_state,
)
from adu.training.teacher import untrained


@dataclass(frozen=True)
class EpochReport:
    """What an epoch gave.

    Attributes:
        epoch: Its number, from 1.
        epochs: How many the run has.
        lr: Learning rate that its last step was taken with.
        losses: Mean of every loss term over the epoch's batches; ``total`` is the objective.
        val: Scores on the validation images.
        train_s: Time spent in training steps, data included.
        val_s: Time spent on validation.
        images_per_s: Training images per second, over all workers.
        wait_s: The part of ``train_s`` in which steps waited for their images.
    """

    epoch: int
    epochs: int
    lr: float
    losses: dict[str, float]
    val: Scores
    train_s: float
    val_s: float
    images_per_s: float
    wait_s: float = 0.0


class TrainingDivergedError(Exception):
    """A loss term is no longer a finite number."""

    def __init__(self, epoch: int, term: str) -> None:
        super().__init__(f"loss term '{term}' is not finite in epoch {epoch}")
        self.epoch = epoch
        self.term = term

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.term)


class Trainer:
    """Trains one run, an epoch at a time.

    Under torch.distributed every worker makes the same calls; the result does not depend on
    their number. A run that was stopped after an epoch goes on exactly from its `state`.

    Args:
        run: What to train, and how.
        context: The model and the data.
        deciding: Epochs, from 1, after which something is decided by the validation scores: after
            them and the last one all validation images are looked at, after others those of
            ``data.quick_val_shots``. None: all of them after every epoch.

    Example:
        >>> run = RunConfig(forget=("sketch",), train=TrainConfig(epochs=2))
        >>> [report.epoch for report in Trainer(run, context).epochs()]
        [1, 2]
    """

    def __init__(
        self, run: RunConfig, context: Context, deciding: Collection[int] | None = None
    ) -> None:
        self.run = run
        self.context = context
        self._deciding = deciding
        # The weights of a run depend on its seed alone, not on what the process did before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.train.seed)
            model = untrained(run, context)
        self.model = model.to(context.device)
        self._transform = replace(
            context.backbone.transform,
            crop_scale=(run.train.crop_scale_min, 1.0),
            hflip=run.train.hflip,
        )
        if model.full_batch_steps is not None:
            model.prepare(context.train_features, *self._labels())
        self._parameters = list(self.model.trainable().values())
        self._optimizer = build_optimizer(self.model, run.train)
        self._average = WeightAverage(self._parameters, run.train.ema_decay)
        self._evolution = None
        if model.evolution is not None:
            sigma, population = model.evolution.sigma, model.evolution.population
            self._evolution = Evolution(self._parameters, sigma, population, run.train.seed + 1)
        self._epochs_done = 0
        self._images: Iterator[Tensor] | None = None

    def epochs(self) -> Iterator[EpochReport]:
        """Trains the epochs that are left, giving a report after each.

        A method without anything to train has no epochs.

        Raises:
            TrainingDivergedError: If a loss term is no longer finite.
        """
        while self._optimizer is not None and self._epochs_done < self.run.train.epochs:
            yield self._run_epoch(self._epochs_done)

    def precision(self) -> torch.autocast:
        """Within it the model sees images in the run's precision."""
        return autocast(self.run.train.precision, self.context.device)

    def validate(self, quick: bool = False) -> Scores:
        """Scores the model as it is on the validation images, or a fixed part of them."""
        context, which = self.context, self.context.quick_val if quick else None
        with self.precision():
            return evaluate_images(self.model, context, context.val, self.run.forget, which)

    def test(self) -> TestResult:
        """Scores the model as it is on the test split; see `evaluate_test`."""
        with self.precision():
            return evaluate_test(self.model, self.context, self.run.forget)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on after the last epoch."""
        weights = {name: p.detach().cpu().clone() for name, p in self.model.trainable().items()}
        average = {
            name: value.cpu().clone()
            for name, value in zip(self.model.trainable(), self._average.values, strict=False)
        }
        state = {
            "epoch": self._epochs_done,
            "weights": weights,
            "optimizer": optimizer_state(self._optimizer, self.model.trainable()),
            "average": average,
        }
        if self._evolution is not None:
            state["evolution"] = self._evolution.history
        return state

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to a `state` of the same run."""
        for name, parameter in self.model.trainable().items():
            parameter.copy_(state["weights"][name])
        restore_optimizer_state(self._optimizer, self.model.trainable(), state["optimizer"])
        for value, saved in zip(self._average.values, state["average"].values(), strict=True):
            value.copy_(saved)
        if self._evolution is not None:
            self._evolution.replay(state["evolution"])
        self._epochs_done = state["epoch"]
        self._images = None

    def _run_epoch(self, epoch: int) -> EpochReport:
        assert self._optimizer is not None
        start_s = time.perf_counter()
        n_images, steps, wait_s = self._steps(epoch)
        losses = _mean_losses(steps, epoch)
        train_s = time.perf_counter() - start_s
        self._average.exchange()
        val = self.validate(quick=not self._decides(epoch + 1))
        val_s = time.perf_counter() - start_s - train_s
        self._epochs_done = epoch + 1
        if self._epochs_done < self.run.train.epochs:
            self._average.exchange()
        return EpochReport(
            epoch + 1,
            self.run.train.epochs,
            learning_rate(self.run.train, epoch),
            losses,
            val,
            train_s,
            val_s,
            n_images / train_s,
            wait_s,
        )

    def _decides(self, epoch: int) -> bool:
        is_last = epoch == self.run.train.epochs
        return self._deciding is None or is_last or epoch in self._deciding

    def _steps(self, epoch: int) -> tuple[int, list[dict[str, Tensor]], float]:
        """Runs an epoch's steps.

        Returns:
            The images seen, each step's loss terms, and the seconds spent waiting for images.
        """
        if self.model.full_batch_steps is not None:
            numbers = _full_batch_steps(self.model.full_batch_steps, self.run.train.epochs, epoch)
            n_images = len(numbers) * len(self.context.train)
            steps = []
            for i, number in enumerate(numbers):
                self._schedule(epoch, (i + 1) / len(numbers))
                steps.append(self._full_batch_step(number))
            return n_images, steps, 0.0
        batches = _batches(self.run.train, self.context.train, epoch)
        if self._images is None:
            self._images = self._feed().start(epoch)
        steps, wait_s = [], 0.0
        for i, rows_B in enumerate(batches):
            asked_s = time.perf_counter()
            images_BCHW = next(self._images)
            wait_s += time.perf_counter() - asked_s
            self._schedule(epoch, (i + 1) / len(batches))
            number = epoch * len(batches) + i
            steps.append(self._step(rows_B.tolist(), images_BCHW, number))
        return sum(map(len, batches)), steps, wait_s

    def _schedule(self, epoch: int, share: float) -> None:
        """Sets the learning rate of an epoch's next step; see `learning_rate`."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            if group["scheduled"]:
                group["lr"] = learning_rate(self.run.train, epoch, share)

    def _feed(self) -> Feed:
        train, images = self.run.train, self.context.train
        batches = partial(_batches, train, images)
        device = self.context.device
        return Feed(images, batches, train.epochs, self._transform, train.seed, device)

    def _step(self, rows: list[int], images_BCHW: Tensor, number: int) -> dict[str, Tensor]:
        """One step on a global batch; returns its detached loss terms.

        Args:
            rows: The batch's image numbers.
            images_BCHW: This worker's share of them.
            number: The step's number in the run, from 0.
        """
        self.model.train()
        with self.precision():
            local = self.model(images_BCHW)
        output = _gathered(local, len(rows))
        class_B, domain_B = self._labels(rows)
        if self._evolution is not None:
            return self._evolution.step(lambda: self._losses(output.features_BE, class_B, domain_B))
        return self._descend(self._terms(output, class_B, domain_B), number)

    def _full_batch_step(self, number: int) -> dict[str, Tensor]:
        """One step on the untouched features of all images, the same on every worker."""
        self.model.train()
        losses = self._losses(self.context.train_features, *self._labels())
        return self._descend(losses, number)

    def _labels(self, rows: list[int] | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Classes and domains of training images."""
        images, device = self.context.train, self.context.device
        return images.class_N[rows].to(device), images.domain_N[rows].to(device)

    def _descend(self, losses: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Takes a step down the gradient of the total; returns the detached terms."""
        assert self._optimizer is not None
        self._optimizer.zero_grad()
        losses["total"].backward()
        average_gradients(self._parameters)
        if self.run.train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.run.train.grad_clip)
        self.model.before_step(number)
        self._optimizer.step()
        self._average.update()
        return {name: value.detach() for name, value in losses.items()}

    def _losses(self, features_BE: Tensor, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """The terms where what is learned changes no image's features."""
        return self._terms(self.model.scored(features_BE), class_B, domain_B)

    def _terms(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """The terms at the logit scale of training."""
        softer = _softened(output, self.run.train.logit_factor)
        return self.model.losses(softer, class_B, domain_B)


def _gathered(local: Output, n_images: int) -> Output:
    """The output for a whole batch of which this worker has its share."""
    return Output(
        gather_batch(local.logits_BC, n_images),
        gather_batch(local.features_BE, n_images),
        local.text_CE,
        None if local.taught is None else _gathered(local.taught, n_images),
    )


def _softened(output: Output, factor: float) -> Output:
    """The output at another logit scale; a teacher's, too, that both are compared at the same."""
    taught = None if output.taught is None else _softened(output.taught, factor)
    return replace(output, logits_BC=factor * output.logits_BC, taught=taught)


def _full_batch_steps(n_steps: int, epochs: int, epoch: int) -> range:
    """The numbers of an epoch's steps, at least one, where a run's are shared out."""
    first = n_steps * epoch // epochs
    return range(first, max(first + 1, n_steps * (epoch + 1) // epochs))


def _batches(train: TrainConfig, images: ImageSet, epoch: int) -> list[Tensor]:
    """The image numbers of an epoch's global batches."""
    if train.sampling == "plain":
        return plain_batches(len(images), train.batch_size, seed=train.seed, epoch=epoch)
    return balanced_batches(images.domain_N, train.batch_size, seed=train.seed, epoch=epoch)


def _mean_losses(steps: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
    """Means over an epoch's steps, looked at once, since each look makes a GPU wait.

    Raises:
        TrainingDivergedError: Naming the term that was the first not to be finite; ``total``
            only if no term that it is made of is.
    """
    terms = sorted(steps[0], key=lambda name: name == "total")
    values_ST = torch.stack([torch.stack([step[name] for name in terms]) for step in steps]).cpu()
    for step_T in values_ST.isfinite():
        if not step_T.all():
            raise TrainingDivergedError(epoch + 1, terms[int(step_T.int().argmin())])
    return dict(zip(terms, values_ST.mean(dim=0).tolist(), strict=True))
