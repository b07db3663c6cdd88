"""The seam to many processes: the only file that knows of ``torch.distributed``.

Without a process group every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from natgrad.moments import Moment

__all__ = ["average", "everywhere", "sum_pending", "unwrapped", "world_size"]


def world_size() -> int:
    """Number of processes that share the statistics; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if world_size() == 1:
        return values
    moved = values.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(moved)
    return (moved / world_size()).to(values)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of data parallelism and compilation."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def everywhere(flag: bool) -> bool:
    """Whether ``flag`` holds in every process."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(int(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return bool(found)


def sum_pending(moments: Sequence[Moment]) -> None:
    """Add up what waits in each moment over all processes, before it is committed.

    Sums and row counts are both added, so the mean afterwards is over the rows of all processes,
    whatever each contributed; a process whose batch left a moment out adds nothing to it.
    """
    if world_size() == 1 or not moments:
        return
    for moment in moments:
        moment.settle()
    zero = torch.zeros_like(moments[0].weight)
    weights = torch.stack([zero if m.pending_weight is None else m.pending_weight for m in moments])
    dist.all_reduce(weights)
    for moment, weight in zip(moments, weights, strict=True):
        if not bool(weight > 0):
            continue
        total = torch.zeros_like(moment.value) if moment.pending is None else moment.pending
        dist.all_reduce(total)
        moment.pending, moment.pending_weight = total, weight
