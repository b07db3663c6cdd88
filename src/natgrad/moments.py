"""Running means: the only place where decay and bias correction happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Later", "Moment"]

ROOM_BYTES = 2**24  #: larger sums get pages of their own from the system


@dataclass(frozen=True)
class Later:
    """A sum that is formed when it is needed, for what it is made of takes less memory.

    Args:
        form: forms it.
        bound: a number that none of its entries exceeds; not finite where the sum isn't.
    """

    form: Callable[[], Tensor]
    bound: Tensor


class Moment(nn.Module):
    """Bias-corrected exponential moving average of a mean over rows.

    After ``K`` commits, ``mean() = sum_k decay^(K-k) S_k / sum_k decay^(K-k) n_k`` with ``S_k`` the
    sum over the ``n_k`` rows of step ``k``. For equal ``n_k`` this is the usual average
    ``decay * old + (1 - decay) * new`` divided by ``1 - decay^K``; the first batch counts in full,
    ``decay=1`` is the plain mean over everything seen, ``decay=0`` keeps the last step only.

    What is added waits in ``pending`` until :meth:`commit`, so that a step can still be dropped
    whole by :meth:`discard`, and micro-batches of one step are averaged before they decay. A sum
    that is to be formed :class:`Later` is so at the commit, or when another one is added to it.

    Args:
        shape: shape of the tensor averaged.
        decay: weight of the old statistics, in [0, 1].
        of_inputs: whether it is a mean over inputs alone; all others are quadratic in gradients.
        of_products: whether what is added are sums of outer products, whole matrices.
    """

    value: Tensor
    weight: Tensor
    pending: Tensor | None
    pending_weight: Tensor | None

    def __init__(
        self,
        *shape: int,
        decay: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        of_inputs: bool = False,
        of_products: bool = False,
    ) -> None:
        super().__init__()
        self.decay, self.of_inputs, self.of_products = decay, of_inputs, of_products
        self._later: Later | None = None
        self._room: Tensor | None = None
        self.register_buffer("value", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("weight", torch.zeros((), dtype=dtype, device=device))
        self.register_buffer("pending", None)
        self.register_buffer("pending_weight", None)

    def make_room(self) -> None:
        """Let what will be added lie in memory that is taken now."""
        if self.pending_weight is None and self.value.nbytes <= ROOM_BYTES:
            self._room = torch.empty_like(self.value)

    def add(self, total: Tensor | Later, rows: int) -> None:
        """Add the sum ``total`` over ``rows`` rows to what waits for the next commit."""
        weight = torch.full_like(self.weight, rows)
        if self.pending_weight is None:
            self.pending_weight = weight
            if isinstance(total, Later):
                self._later = total
            else:
                self.pending = total if self._room is None else self._room.copy_(total)
            self._room = None
            return
        self.settle()
        assert self.pending is not None
        total = total.form() if isinstance(total, Later) else total
        self.pending, self.pending_weight = self.pending + total, self.pending_weight + weight

    def settle(self) -> None:
        """Form what waits, where that was left for later."""
        if self._later is not None:
            self.pending, self._later = self._later.form(), None

    def correct(self, factor: float) -> None:
        """Multiply the gradients behind what waits by ``factor``."""
        if self.of_inputs or factor == 1:
            return
        self.settle()
        if self.pending is not None:
            self.pending = self.pending * factor**2

    def commit(self) -> None:
        """Let what waits enter the average, and decay the old by ``decay``; else do nothing."""
        self.settle()
        self._room = None
        if self.pending is None or self.pending_weight is None:
            return
        torch.add(self.pending, self.value, alpha=self.decay, out=self.value)  # in one pass
        self.weight.mul_(self.decay).add_(self.pending_weight)
        self.discard()

    def discard(self) -> None:
        """Drop what waits."""
        self._room = None
        if self.pending_weight is not None:
            self.pending = self.pending_weight = self._later = None

    def witness(self) -> Tensor | None:
        """Something small that is finite only if all that waits is; None if nothing waits.

        Of ``sum a a^T`` the diagonal: ``|sum a_i a_j|`` is at most the larger of ``sum a_i^2`` and
        ``sum a_j^2``. Of what has not been formed the bound on its entries.
        """
        if self._later is not None:
            return self._later.bound
        if self.pending is None or not self.of_products:
            return self.pending
        return self.pending.diagonal(dim1=-2, dim2=-1)

    def mean(self) -> Tensor:
        """The bias-corrected average (zero before the first commit)."""
        return self.value / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # buffers that are None now but stand in the checkpoint (saved in the middle of an
        # accumulation) need a place to be loaded to, and the other way round
        self._later = None
        for name in ("pending", "pending_weight"):
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.zeros_like(saved).to(self.value))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
