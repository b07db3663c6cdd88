"""Whitened linear layers evaluated on rows of activations, where these are few.

``W = Q V P`` costs ``2 o k^2`` forward and as much backward, whatever the batch; ``P (x - c)`` for
``r`` rows costs ``2 r k^2`` forward, and as much backward unless ``x`` is data. Networks trained
with batches smaller than their layers are wide are better off with the rows (MATH 5.7).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from natgrad.modes import autocasts
from natgrad.whiten.coordinates import Constants

__all__ = ["rows_are_cheaper", "through_rows"]

PARTS = 4  #: of a triangular P; each skips the zeros right of it


def rows_are_cheaper(at: Constants, o: int, input: Tensor) -> bool:
    """Whether :func:`through_rows` takes fewer operations than ``W = Q V P``.

    Not under autocast: there ``W`` is worked out in full precision, rows would not be.
    """
    if autocasts(input.device.type):
        return False
    k = input.shape[-1]
    r = input.numel() // max(k, 1)
    of_rows = (4 if input.requires_grad else 2) * r * _dense(at.P, k) + 4 * r * _dense(at.Q, o)
    return of_rows < 4 * o * _dense(at.P, k) + 4 * k * _dense(at.Q, o)


def through_rows(
    at: Constants, input: Tensor, V: Tensor, d: Tensor | None, triangular: bool = False
) -> Tensor:
    """``Q (V P (x - c) + d)`` for ``x [.., k]``; without ``c``, ``Q V P x + d``.

    Args:
        at: constants of a layer without groups.
        input: ``x``.
        V: ``[o, k]``.
        d: ``[o]``.
        triangular: whether ``P`` is lower triangular.
    """
    x = input if at.c is None else input - at.c
    x = x * at.P if at.P.shape[-2] < at.P.shape[-1] else _times(x, at.P, triangular)
    if at.Q is None:
        return F.linear(x, V, d)
    inside = d if at.c is not None else None
    z = F.linear(x, V, inside)
    z = z * at.Q.squeeze(-1) if at.Q.shape[-1] < at.Q.shape[-2] else F.linear(z, at.Q)
    return z if d is None or inside is not None else z + d


def _times(x: Tensor, P: Tensor, triangular: bool) -> Tensor:
    if not triangular:
        return F.linear(x, P)
    product: Tensor = _Triangular.apply(x.flatten(0, -2), P)  # type: ignore[no-untyped-call]
    return product.reshape(x.shape)


def _dense(M: Tensor | None, size: int) -> int:
    """Multiplications by ``M`` per row: none for the identity, few for a diagonal."""
    return 0 if M is None else size if 1 in M.shape[-2:] else size * size


class _Triangular(torch.autograd.Function):
    """``x P^T`` for a constant lower triangular ``P``, in parts that leave out its zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, P: Tensor) -> Tensor:
        product = torch.empty_like(x)
        for p in _parts(len(P)):
            product[:, p].addmm_(x[:, : p.stop], P[p, : p.stop].mT, beta=0)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (P,) = ctx.saved_tensors
        *others, last = _parts(len(P))
        total = grad[:, last] @ P[last]
        for p in others:
            total[:, : p.stop].addmm_(grad[:, p], P[p, : p.stop])
        return total, None


def _parts(k: int) -> list[slice]:
    size = -(-k // PARTS)
    return [slice(start, min(start + size, k)) for start in range(0, k, size)]
