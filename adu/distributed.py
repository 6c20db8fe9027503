"""The few collective steps of training, all of them no-ops in a single process.

Every rank computes the loss of the *global* batch, so that the result does not depend on the
number of workers: MMD compares images that different workers have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """This worker's rank and the number of workers; (0, 1) in a single process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The contiguous share of ``n`` items that is one rank's; shares differ by at most one."""
    share, n_larger = divmod(n, world_size)
    start = rank * share + min(rank, n_larger)
    return slice(start, start + share + (rank < n_larger))


def gather_batch(local: Tensor, n_global: int) -> Tensor:
    """Joins the ranks' shares of a batch, in rank order, so that gradients flow to all of them.

    Args:
        local: This rank's share along dimension 0, cut by `rank_slice`.
        n_global: Size of the whole batch.

    Returns:
        The whole batch, the same on every rank. Each rank is expected to compute the same loss
        from it and to average parameter gradients afterwards (`average_gradients`).
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    return _Gather.apply(local, n_global, rank, world_size)


class _Gather(torch.autograd.Function):
    """All-gather whose backward needs no communication.

    All ranks hold the same loss of the same gathered batch, so the gradient of this rank's share
    is a slice of what arrives here. It is scaled by the number of ranks because parameters
    before the gather see one share each and are averaged, which would divide their sum.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, n_global: int, rank: int, world_size: int) -> Tensor:
        ctx.own = rank_slice(n_global, rank, world_size)
        ctx.world_size = world_size
        share = -(-n_global // world_size)
        # All must send alike: the shares of later ranks may be one shorter than the first one's.
        padded = local.new_zeros((share, *local.shape[1:]))
        padded[: len(local)] = local
        shares = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(shares, padded)
        slices = [rank_slice(n_global, other, world_size) for other in range(world_size)]
        sizes = [own.stop - own.start for own in slices]
        return torch.cat([got[:size] for got, size in zip(shares, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0][ctx.own] * ctx.world_size, None, None, None


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Averages gradients over the ranks in one message."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    gradients = [_gradient(parameter) for parameter in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over the ranks, in place."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
    return values


def gather_objects(local: Any) -> list[Any]:
    """One picklable object of every rank, in rank order, on every rank."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [local]
    objects: list[Any] = [None] * world_size
    dist.all_gather_object(objects, local)
    return objects


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    # A rank whose share was empty has no gradient of its own but takes part in the average.
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
