"""Learning rate and momentum of a step on residuals, from the exact quadratic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad.least_squares.jacobian import flat
from natgrad.least_squares.system import System
from natgrad.quadratic import Quadratic
from natgrad.span import Span

__all__ = ["Automatic"]


@dataclass(frozen=True)
class Automatic:
    """``alpha, mu`` that minimise ``1/2 |r + J delta|^2 + (damping + l2)/2 |delta|^2``.

    Over ``delta = -alpha phi + mu delta_before``, as :class:`natgrad.Auto` does for likelihoods;
    here ``J`` is known, and it costs two products with it.

    Attributes:
        lr: whether to choose the learning rate; the groups' ``lr`` multiplies it then.
        momentum: whether to choose the momentum; likewise.
        l2: weight of a penalty ``l2/2 |w|^2`` that is part of the loss.
    """

    lr: bool
    momentum: bool
    l2: float = 0.0

    @torch.no_grad()
    def delta(
        self,
        system: System,
        ridge: float,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
    ) -> tuple[list[Tensor], float]:
        """The step of every parameter whose natural gradient is in ``.grad``, and its rate."""
        moving = [(p, group) for group in groups for p in group["params"] if p.requires_grad]
        own = [group for _, group in moving]
        span = Span.of(moving, own, state, lr=self.lr, momentum=self.momentum)
        flats = [flat(each, span.parameters).to(system.r) for each in span.directions]
        w = span.multiplied(span.chosen(self._model(system, flats), ridge))
        parts = zip(span.parameters, span.steps(w), span.lost(w), strict=True)
        return [step - lost * p.detach() for p, step, lost in parts], -w[0]

    def _model(self, system: System, flats: Sequence[Tensor]) -> Quadratic:
        V = torch.stack([v.double().cpu() for v in flats])
        JV = torch.stack([system.product(v).double().cpu() for v in flats])
        D = V @ V.mT
        return Quadratic(JV @ JV.mT + self.l2 * D, D, JV @ system.r.double().cpu())
