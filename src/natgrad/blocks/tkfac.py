"""TKFAC: the Kronecker product that keeps the trace of the layer's Fisher block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from natgrad.blocks.counts import weighted
from natgrad.blocks.two_factor import TwoFactor
from natgrad.damping import Factored
from natgrad.flops import Rows, Work
from natgrad.sample import Sample

__all__ = ["TKFAC"]


class TKFAC(TwoFactor):
    """``F_l ~ delta Psi (x) Phi`` with ``tr Phi = tr Psi = 1`` (Gao et al. 2020, arXiv 2011.10741).

    ``delta = E[|a|^2 |g|^2]``, ``Phi = E[|g|^2 a a^T] / delta``, ``Psi = E[|a|^2 g g^T] / delta``
    (their 4.4-4.6 with 4.9; MATH 3). Both partial traces of the block are reproduced, hence its
    trace (V:C6, V:C7). With shared weights the pairs are those of each position, and the trace is
    that of the pooled block, without the cross terms between positions (V:C22, V:C24).

    What is averaged are the un-normalised numerators ``P = delta Phi`` (kept in ``A``),
    ``S = delta Psi`` (in ``G``) and ``delta``, so that the traces agree at all times (V:C19). The
    factors are ``P / sqrt(delta)`` and ``S / sqrt(delta)``, which tend to zero with ``delta``: a
    dead layer is damped, not divided by zero. A plain number as damping adds ``sqrt(damping)`` to
    each (5.14, 5.15), without ``pi``.
    """

    @staticmethod
    def default_damping(value: float) -> Factored:
        """(5.14), (5.15): the same ridge ``sqrt(value)`` on both factors."""
        return Factored(value, balanced=False)

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        self.delta = self._moment()

    def observe(self, sample: Sample) -> None:
        """``2 n t (i^2 + c o^2)`` flop."""
        if self.shared == "reduce":
            sample = sample.reduced()
        a2, g2 = sample.input_norms(), sample.output_norms()
        self.A.add(sample.input_moment(g2, self.input.split), sample.examples)
        self.G.add(sample.output_moment(a2, self.output.split), sample.examples)
        self.delta.add((a2 * g2).sum((-2, -1)), sample.examples)

    def _observing(self, rows: Rows) -> tuple[Work, ...]:
        """Every row also gets a weight."""
        o, i = self.shape
        n, t, c = self._kept(rows)[:3]
        inputs = () if self.diagonal_input else weighted(n * t, i)
        return *super()._observing(rows), *inputs, *weighted(c * n * t, o)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """``sqrt(delta) Phi`` and ``sqrt(delta) Psi``."""
        delta = self.delta.mean()
        root = delta.clamp_min(torch.finfo(delta.dtype).tiny).rsqrt()
        over_A, over_G = (
            root.reshape(*root.shape, *[1] * len(side.shape)) for side in (self.input, self.output)
        )
        return self.A.mean() * over_A, self.G.mean() * over_G
