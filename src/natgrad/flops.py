"""Floating-point operations of a layer's curvature, counted on paper; a multiply-add is two."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EIGH", "INVERSE", "WARM", "Flops", "Rows", "model_flops"]

EIGH = 9  #: of a symmetric eigendecomposition with vectors, per d^3
WARM = 20 / 3  #: of two products and a QR factorisation with ``Q`` formed, per d^3
INVERSE = 1  #: of a Cholesky factorisation and inverse, per d^3


class Rows(NamedTuple):
    """What one batch gives a layer."""

    examples: int = 1
    positions: int = 1
    columns: int = 1  #: draws of the sampled Fisher, columns of the exact one


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


def model_flops(o: int, i: int, rows: Rows) -> float:
    """Forward and backward pass of a layer ``[o, i]``: three products of its rows and matrix."""
    return 6.0 * rows.examples * rows.positions * o * i
