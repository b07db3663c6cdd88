"""Learning rate and momentum of a step on residuals, from the exact quadratic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.least_squares.jacobian import flat
from natgrad.least_squares.system import System
from natgrad.quadratic import Quadratic

__all__ = ["DELTA", "Automatic"]

DELTA = "delta"  #: the last step, of a parameter


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
        pairs = [(p, group) for group in groups for p in group["params"] if p.requires_grad]
        parameters: list[nn.Parameter] = [p for p, _ in pairs]
        tops = {key: max(float(g[key]) for _, g in pairs) for key in ("lr", "momentum")}
        directions = [[_relative(p.grad, group["lr"], tops["lr"]) for p, group in pairs]]
        if any(DELTA in state.get(p, {}) for p in parameters) and tops["momentum"] > 0:
            directions.append(
                [
                    _relative(state[p][DELTA], group["momentum"], tops["momentum"])
                    if DELTA in state.get(p, {})
                    else torch.zeros_like(p)
                    for p, group in pairs
                ]
            )
        fixed = [None if self.lr else -tops["lr"], None if self.momentum else tops["momentum"]]
        flats = [flat(each, parameters).to(system.r) for each in directions]
        w = self._model(system, flats).minimiser(ridge, fixed[: len(directions)])
        w[0] *= tops["lr"] if self.lr else 1.0
        if len(w) > 1:
            w[1] *= tops["momentum"] if self.momentum else 1.0
        found = []
        for k, (p, group) in enumerate(pairs):
            step = sum((c * each[k] for c, each in zip(w, directions, strict=True)), 0 * p)
            decay = max(-w[0], 0.0) * group["lr"] / (tops["lr"] or 1.0) * group["weight_decay"]
            found.append(step - decay * p.detach())
        return found, -w[0]

    def _model(self, system: System, flats: Sequence[Tensor]) -> Quadratic:
        V = torch.stack([v.double().cpu() for v in flats])
        JV = torch.stack([system.product(v).double().cpu() for v in flats])
        D = V @ V.mT
        return Quadratic(JV @ JV.mT + self.l2 * D, D, JV @ system.r.double().cpu())


def _relative(x: Tensor, own: float, top: float) -> Tensor:
    return x if own == top or top == 0 else x * (own / top)
