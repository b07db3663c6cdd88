"""The directions that a step is chosen from, and the step made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.quadratic import Quadratic

__all__ = ["DELTA", "Span"]

Group: TypeAlias = Mapping[str, Any]

DELTA = "delta"  #: the last step of a parameter; torch would not bring a "step" to another device


@dataclass(frozen=True)
class Span:
    """The natural gradients in ``.grad``, and the last step if there was one.

    The natural gradients are one direction, or one for each part of the parameters; the last step
    is one. Within a direction the parameter groups' multipliers count relative to the largest,
    which multiplies the coefficients that the quadratic model chooses.

    Attributes:
        parameters: those that move.
        natural: how many directions, from the first, are natural gradients.
        directions: a tensor for each parameter, None where it stays.
        given: the coefficient of each direction, None where the model chooses it.
        multipliers: of the coefficients chosen, 1 where given.
        decays: for each parameter, what its weight loses per unit of the learning rate.
    """

    parameters: Sequence[nn.Parameter]
    natural: int
    directions: Sequence[Sequence[Tensor | None]]
    given: Sequence[float | None]
    multipliers: Sequence[float]
    decays: Sequence[float]

    @classmethod
    def of(
        cls,
        moving: Sequence[tuple[nn.Parameter, Group]],
        among: Iterable[Group],
        state: Mapping[Tensor, Mapping[str, Any]],
        *,
        lr: bool,
        momentum: bool,
        parts: Sequence[Collection[int]] = (),
    ) -> Span:
        """The span of an optimizer's step.

        Args:
            moving: the parameters with their groups.
            among: groups whose largest multiplier counts.
            state: an optimizer's, with the last step under :data:`DELTA`.
            lr: whether the learning rate is chosen; else it is the groups'.
            momentum: whether the momentum is chosen; else it is the groups'.
            parts: numbers of the parameters whose natural gradients are a direction together; each
                parameter is in one. Without any, all are.
        """
        groups = list(among)
        rate, top = (max(float(g[key]) for g in groups) for key in ("lr", "momentum"))
        whole = [_relative(p.grad, g["lr"], rate) for p, g in moving if p.grad is not None]
        directions: list[list[Tensor | None]] = [
            [v if k in part else None for k, v in enumerate(whole)]
            for part in parts or [range(len(whole))]
        ]
        natural = len(directions)
        last = [state.get(p, {}).get(DELTA) for p, _ in moving]
        if top > 0 and any(delta is not None for delta in last):
            directions.append(
                [
                    torch.zeros_like(p) if delta is None else _relative(delta, g["momentum"], top)
                    for (p, g), delta in zip(moving, last, strict=True)
                ]
            )
        lasts = len(directions) - natural
        return cls(
            parameters=[p for p, _ in moving],
            natural=natural,
            directions=directions,
            given=[None if lr else -rate] * natural + [None if momentum else top] * lasts,
            multipliers=[rate if lr else 1.0] * natural + [top if momentum else 1.0] * lasts,
            decays=[(g["lr"] / rate if rate else 0.0) * g["weight_decay"] for _, g in moving],
        )

    def chosen(self, model: Quadratic, damping: float) -> list[float]:
        """Coefficients that minimise the damped model, before the groups' multipliers."""
        return model.minimiser(damping, self.given)

    def multiplied(self, w: Sequence[float]) -> list[float]:
        """Coefficients with the groups' multipliers."""
        return [value * factor for value, factor in zip(w, self.multipliers, strict=True)]

    def steps(self, w: Sequence[float]) -> list[Tensor]:
        """``sum_i w_i v_i`` of each parameter."""
        natural: dict[int, Tensor] = {}
        for value, direction in zip(w[: self.natural], self.directions, strict=False):
            own = {k: v for k, v in enumerate(direction) if v is not None}
            natural.update(zip(own, torch._foreach_mul(list(own.values()), value), strict=True))
        found = [natural[k] for k in range(len(self.parameters))]
        for value, last in zip(w[self.natural :], self.directions[self.natural :], strict=True):
            torch._foreach_add_(found, [v for v in last if v is not None], alpha=value)
        return found

    def lost(self, w: Sequence[float]) -> list[float]:
        """The part of each weight that decays in the step; uphill none, or weights would grow."""
        rates = [0.0] * len(self.decays)
        for value, direction in zip(w[: self.natural], self.directions, strict=False):
            for k, v in enumerate(direction):
                rates[k] = rates[k] if v is None else max(-value, 0.0)
        return [rate * decay for rate, decay in zip(rates, self.decays, strict=True)]


def _relative(x: Tensor, own: float, top: float) -> Tensor:
    """Relative to the largest of the groups; no copy where they are the same."""
    return x if own == top or top == 0 else x * (own / top)
