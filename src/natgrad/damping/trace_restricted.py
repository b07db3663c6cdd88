"""Damping by the mean eigenvalue of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from natgrad.damping.base import LayerCurvature, LayerDamping
from natgrad.damping.fixed import split_ridge

__all__ = ["TraceRestricted"]

FC_SCALES = ("none", "paper", "theta", "as_damping")


@dataclass
class TraceRestricted:
    """A layer's mean eigenvalue as its damping: ``lambda_l = max(tr F_l, nu) / dim F_l``.

    Gao et al. 2020 (arXiv 2011.13609), (3.5). Above ``nu`` the step is homogeneous of degree -1 in
    the scale of the loss (V:C16, V:C17); below it the damping is constant. EKFAC and TEKFAC add it
    to their scale. TKFAC and K-FAC split it over the factors, ``sqrt(lambda_l) p`` on ``A`` and
    ``sqrt(lambda_l) / p`` on ``G`` with ``p = sqrt(tr A / tr G)``: for TKFAC, whose traces are
    equal, that is (5.15) of arXiv 2011.10741; for K-FAC the split of scale between the factors
    drops out.

    For dense layers of a network with convolutions the paper multiplies the Fisher by
    ``beta = max_l lambda_l`` over the convolutions, in words that leave three readings (MATH 4):

    * ``"none"``: every layer gets (3.5) of its own;
    * ``"paper"``: ``beta (F + lambda I)``, which divides the step by ``beta``;
    * ``"theta"``: ``beta F + lambda I``;
    * ``"as_damping"``: ``F + beta I``.

    Args:
        nu: floor of the trace, "parameter to restrict trace".
        fc_scale: the reading.

    Raises:
        ValueError: ``nu`` below zero or not finite, or an unknown reading.
    """

    nu: float
    fc_scale: Literal["none", "paper", "theta", "as_damping"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.nu < float("inf"):
            raise ValueError(f"nu must be a finite number >= 0, got {self.nu}")
        if self.fc_scale not in FC_SCALES:
            raise ValueError(f"fc_scale must be one of {FC_SCALES}, got {self.fc_scale!r}")

    def ridge(self, trace: Tensor, dim: int) -> Tensor:
        """``max(trace, nu) / dim``."""
        return trace.clamp_min(self.nu) / dim

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """``sqrt(lambda)`` on both factors, in the proportion of their traces."""
        trace = (trace_A * trace_G).sum()
        return split_ridge(self.ridge(trace, d * m * trace_A.numel()), trace_A, trace_G)

    def across(self, layers: Sequence[LayerCurvature]) -> list[LayerDamping] | None:
        """(3.5) for each layer, with ``beta`` for dense layers beside convolutions."""
        own = [self.ridge(layer.trace, layer.dim) for layer in layers]
        both = list(zip(layers, own, strict=True))
        of_convolutions = [value for layer, value in both if layer.kind == "convolution"]
        if self.fc_scale == "none" or not of_convolutions:
            return None
        beta = torch.stack(of_convolutions).amax()
        return [
            self._scaled(value, beta) if layer.kind == "dense" else LayerDamping(value)
            for layer, value in both
        ]

    def _scaled(self, ridge: Tensor, beta: Tensor) -> LayerDamping:
        if self.fc_scale == "as_damping":
            return LayerDamping(beta)
        # dead convolutions without a floor give no beta to go by
        factor = torch.where(beta > torch.finfo(beta.dtype).tiny, beta, torch.ones_like(beta))
        if self.fc_scale == "paper":
            return LayerDamping(ridge, 1 / factor)
        return LayerDamping(ridge / factor, 1 / factor)  # (b F + l)^-1 = (F + l / b)^-1 / b
