"""The path of a step, and the quadratic model along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natgrad.least_squares.jacobian import flat
from natgrad.least_squares.system import System

__all__ = ["Model", "Move"]


@dataclass(frozen=True)
class Move:
    """Parameters on ``before + t delta + 1/2 t^2 bend``; at 0 they are exactly what they were."""

    parameters: Sequence[nn.Parameter]
    before: Sequence[Tensor]
    delta: Sequence[Tensor]
    bend: Sequence[Tensor] | None = None

    @torch.no_grad()
    def to(self, t: float) -> None:
        """Go to this place on it."""
        for k, (p, start) in enumerate(zip(self.parameters, self.before, strict=True)):
            place = torch.add(start, self.delta[k], alpha=t) if t else start
            if t and self.bend is not None:
                place = torch.add(place, self.bend[k], alpha=t**2 / 2)
            p.copy_(place)


class Model:
    """``<grad, d> + 1/2 |J d|^2`` along a path ``d(t) = t delta + 1/2 t^2 bend``."""

    def __init__(self, system: System, move: Move) -> None:
        self.r = system.r
        self.along = system.product(flat(move.delta, move.parameters).to(system.r))
        self.slope = float(system.r @ self.along)
        self.bend: Tensor | None = None
        if move.bend is not None:
            self.bend = system.product(flat(move.bend, move.parameters).to(system.r))

    def change(self, t: float) -> float:
        """Of the loss, as the model foretells it."""
        away = t * self.along if self.bend is None else t * self.along + t**2 / 2 * self.bend
        return float(self.r @ away + away.square().sum() / 2)
