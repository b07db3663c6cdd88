"""Floating-point operations of a layer's curvature, counted on paper; a multiply-add is two."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EIGH", "INVERSE", "Flops", "Rows", "input_products", "model_flops", "rows_pay"]

EIGH = 9  #: of a symmetric eigendecomposition with vectors, per d^3
WORTHWHILE = 5e6  #: multiply-adds to be saved before another way is taken: some 0.1 ms on a core
INVERSE = 1  #: of a Cholesky factorisation and inverse, per d^3


class Rows(NamedTuple):
    """What one batch gives a layer."""

    examples: int = 1
    positions: int = 1
    columns: int = 1  #: draws of the sampled Fisher, columns of the exact one
    moment: float | None = None  #: multiply-adds of sum a a^T, where it is not taken of the rows


class Flops(NamedTuple):
    """Of one layer: per batch of statistics, per decomposition, and per step."""

    statistics: float
    decomposition: float
    solve: float

    def per_step(self, stats_every: int, refresh_every: int) -> float:
        """The average over a schedule."""
        return self.statistics / stats_every + self.decomposition / refresh_every + self.solve

    def times(self, count: int) -> Flops:
        """``count`` equal blocks side by side."""
        return Flops(*(count * part for part in self))


def input_products(i: int, rows: Rows) -> float:
    """Multiply-adds of ``sum a a^T [i, i]``: ``n t i^2``, unless it comes cheaper."""
    return rows.examples * rows.positions * i**2 if rows.moment is None else rows.moment


def model_flops(o: int, i: int, rows: Rows) -> float:
    """Forward and backward pass of a layer ``[o, i]``: three products of its rows and matrix."""
    return 6.0 * rows.examples * rows.positions * o * i


def rows_pay(shape: tuple[int, int], rows: int) -> bool:
    """Whether ``(g G^-1)^T (a A^-1)`` costs less than ``G^-1 M A^-1`` for ``M [o, i]``.

    ``n (o^2 + i^2 + o i)`` multiply-adds against ``o i (o + i)``.
    """
    o, i = shape
    return o * i * (o + i) - rows * (o * o + i * i + o * i) > WORTHWHILE
