"""Running means of a layer's local Fisher statistics, one batch at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.distributed import sum_pending, world_size
from natgrad.moments import Moment
from natgrad.sample import statistics_dtype

__all__ = ["Averages", "Local", "over_processes"]


class Local(NamedTuple):
    """What the local Fisher matrix of a layer is made of (MATH 6.3)."""

    A: Tensor  #: ``E[x x^T] [(q,) k, k]``
    nu: Tensor  #: ``E[nu] [(q,) o]``


class Averages(nn.Module):
    """``decay * old + (1 - decay) * batch``, bias-corrected; every batch weighs the same.

    Args:
        groups: ``(q,)`` or ``()``.
        shape: ``(o, k)``.
        decay: weight of the old statistics.
        like: a parameter; half-precision ones have averages in float32.
    """

    def __init__(
        self, groups: tuple[int, ...], shape: tuple[int, int], decay: float, like: Tensor
    ) -> None:
        super().__init__()
        (o, k), self.decay = shape, decay
        kept: dict[str, Any] = {"dtype": statistics_dtype(like.dtype), "device": like.device}
        self.A = Moment(*groups, k, k, decay=decay, **kept)
        self.nu = Moment(*groups, o, decay=decay, **kept)

    @property
    def empty(self) -> bool:
        """Whether no batch was taken in."""
        return not bool(self.A.weight > 0)

    @property
    def dtype(self) -> torch.dtype:
        """What statistics are worked out in: buffers moved to half precision stay coarse."""
        return statistics_dtype(self.A.value.dtype)

    @property
    def version(self) -> tuple[Any, ...]:
        """Changes with every change of the averages."""
        return self.A.value, self.A.value._version, self.nu.value, self.nu.value._version

    def mean(self) -> Local:
        """The averages."""
        return Local(self.A.mean().to(self.dtype), self.nu.mean().to(self.dtype))

    def take_in(self, batch: Local, rows: int) -> Local | None:
        """Let a batch of ``rows`` rows enter.

        Returns:
            The statistics of this batch, over all processes; None if there is no row or a number
            that is not finite. Then nothing has changed.
        """
        batch = _pooled(batch, rows) if world_size() > 1 else batch
        if (not rows and world_size() == 1) or not bool(_usable(batch)):
            return None
        for moment, mean in zip((self.A, self.nu), batch, strict=True):
            moment.add(mean, 1)
            moment.commit()
        return batch

    @torch.no_grad()
    def begin(self, at: Local) -> None:
        """Start from these, as if all batches of a long run had had them."""
        weight = 1 / (1 - self.decay)
        for moment, mean in zip((self.A, self.nu), at, strict=True):
            moment.value.copy_(mean).mul_(weight)
            moment.weight.fill_(weight)


def _pooled(batch: Local, rows: int) -> Local:
    return Local(*over_processes((batch.A * rows, rows), (batch.nu * rows, rows)))


def over_processes(*sums: tuple[Tensor, float]) -> list[Tensor]:
    """Means over all processes of tensors, each given as this one's sum and its weight."""
    moments = []
    for total, weight in sums:
        moment = Moment(*total.shape, decay=0, dtype=total.dtype, device=total.device)
        if weight:
            moment.add(total, 0)
            moment.pending_weight = torch.full_like(moment.weight, weight)
        moments.append(moment)
    sum_pending(moments)
    for moment in moments:
        moment.commit()
    return [moment.value / moment.weight for moment in moments]


def _usable(batch: Local) -> Tensor:
    # a number of the rows that is not finite, or too large, shows on the diagonal
    return linalg.trace(batch.A).isfinite().all() & batch.nu.isfinite().all()
