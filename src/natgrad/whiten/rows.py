"""Whitened linear layers evaluated on rows of activations, where these are few.

``W = Q V P`` costs ``2 o k^2`` forward and as much backward, whatever the batch; ``P (x - c)`` for
``r`` rows costs ``2 r k^2`` forward, and as much backward unless ``x`` is data. Networks trained
with batches smaller than their layers are wide are better off with the rows (MATH 5.7). Half of
one and half of the other is never better: the product that a form makes first, ``P`` on the rows or
``W``, is the one that its backward pass needs. All other products, ``2 r o k``, are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from natgrad.modes import autocasts
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.triangle import times_upper

__all__ = ["rows_are_cheaper", "through_rows"]


def rows_are_cheaper(at: Constants, o: int, input: Tensor, trained: bool = True) -> bool:
    """Whether :func:`through_rows` takes fewer operations than ``W = Q V P``.

    Not under autocast: there ``W`` is worked out in full precision, rows would not be.

    Args:
        at: constants of a layer without groups.
        o: outputs of the layer.
        input: what it takes.
        trained: whether a gradient with respect to ``V`` will be wanted.
    """
    if autocasts(input.device.type):
        return False
    k = input.shape[-1]
    r = input.numel() // max(k, 1)
    P, Q = _dense(at.P, k), _dense(at.Q, o)
    to_input = torch.is_grad_enabled() and input.requires_grad
    to_weight = torch.is_grad_enabled() and trained
    of_rows = r * ((1 + to_input) * P + (1 + (to_input or to_weight)) * Q)
    return of_rows < (1 + to_weight) * (o * P + k * Q)


def through_rows(at: Constants, input: Tensor, V: Tensor, d: Tensor | None) -> Tensor:
    """``Q (V P (x - c) + d)`` for ``x [.., k]``; without ``c``, ``Q V P x + d``.

    Args:
        at: constants of a layer without groups.
        input: ``x``.
        V: ``[o, k]``.
        d: ``[o]``.
    """
    x = input if at.c is None else input - at.c
    x = x * at.P if at.P.shape[-2] < at.P.shape[-1] else _whitened(x, at)
    if at.Q is None:
        return F.linear(x, V, d)
    inside = d if at.c is not None else None
    z = F.linear(x, V, inside)
    z = z * at.Q.squeeze(-1) if at.Q.shape[-1] < at.Q.shape[-2] else F.linear(z, at.Q)
    return z if d is None or inside is not None else z + d


def _whitened(x: Tensor, at: Constants) -> Tensor:
    return times_upper(x, at.P) if at.lower else F.linear(x, at.P)


def _dense(M: Tensor | None, size: int) -> int:
    """Multiplications by ``M`` per row: none for the identity, few for a diagonal."""
    return 0 if M is None else size if 1 in M.shape[-2:] else size * size
