"""Learning rate and momentum from the quadratic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natgrad.arguments import check_range
from natgrad.preconditioner import Preconditioner
from natgrad.quadratic import Gradient, Quadratic
from natgrad.replay import Replay

__all__ = ["Auto", "Choice", "Chooser", "moving"]


@dataclass(frozen=True)
class Auto:
    """Learning rate and momentum from the quadratic model of each step.

    ``alpha, mu`` minimise ``M(delta) + (damping + l2)/2 |delta|^2`` over ``delta = -alpha U + mu
    delta_before`` (Martens & Grosse 2015, sections 6.4 and 7). That takes ``F``'s products with
    both directions, each one forward pass with tangents of the part of the batch, which costs
    three forward passes of it: with a quarter 1.5 of the whole batch, half as much as a gradient.

    Args:
        fraction: of the batch, its first examples, that ``F`` is taken of.
        l2: weight of a penalty ``l2/2 |w|^2`` that is part of the loss.

    Raises:
        ValueError: an argument out of range.
    """

    fraction: float = 0.25
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0 < self.fraction <= 1, "in (0, 1]")
        check_range("l2", self.l2, self.l2 >= 0, "at least 0")


@dataclass(frozen=True)
class Choice:
    """A step along the natural gradients and along the last step.

    Attributes:
        moving: the parameters.
        directions: natural gradients, and the last step if there was one; a tensor a parameter.
        w: coefficient of each direction.
        model: quadratic model over these coefficients.
        lr: as the model chose it, before the groups' multipliers.
        momentum: likewise.
    """

    moving: Sequence[nn.Parameter]
    directions: Sequence[Mapping[nn.Parameter, Tensor]]
    w: Sequence[float]
    model: Quadratic
    lr: float
    momentum: float

    def change(self, damping: float = 0.0) -> float:
        """What the model foretells, with so much damping in it."""
        w = torch.tensor(self.w, dtype=self.model.D.dtype)
        return self.model.change(self.w) + damping / 2 * float(w @ self.model.D @ w)


class Chooser:
    """Chooses steps of one optimizer.

    Args:
        preconditioner: of the optimizer.
        replay: of its batches.
        auto: how.
        lr: whether to choose the learning rate.
        momentum: whether to choose the momentum.

    Raises:
        ValueError: the damping has no value to damp the model with.
    """

    def __init__(
        self, preconditioner: Preconditioner, replay: Replay, auto: Auto, lr: bool, momentum: bool
    ) -> None:
        self.pre, self.replay, self.auto = preconditioner, replay, auto
        self.lr, self.momentum = lr, momentum
        self.damping()

    def damping(self) -> float:
        """Of the quadratic model, at present."""
        value = getattr(self.pre.damping, "value", self.pre.damping)
        if not isinstance(value, (int, float)):
            raise ValueError(
                "lr='auto' and momentum='auto' need a damping with one number, which the "
                f"quadratic model is damped with too; {type(self.pre.damping).__name__} has none"
            )
        return float(value)

    @torch.no_grad()
    def choose(self, optimizer: torch.optim.Optimizer, size: float) -> Choice:
        """The step whose natural gradients are in ``.grad``.

        Args:
            optimizer: whose parameters are to move.
            size: how many times the mean over examples the user's loss is.
        """
        parameters, state = moving(optimizer), optimizer.state
        rates, momenta = by_parameter(optimizer, "lr"), by_parameter(optimizer, "momentum")
        top_rate, top_momentum = max(rates.values()), max(momenta.values())
        U = {p: _scaled(p.grad, rates[p], top_rate) for p in parameters if p.grad is not None}
        directions = [U]
        if any("delta" in state[p] for p in parameters) and top_momentum > 0:
            directions.append({
                p: _scaled(state[p]["delta"], momenta[p], top_momentum)
                if "delta" in state[p] else torch.zeros_like(p)
                for p in parameters
            })  # fmt: skip
        fixed = [None if self.lr else -top_rate, None if self.momentum else top_momentum]
        model = self._model(parameters, directions, size)
        w = model.minimiser(self.damping(), fixed[: len(directions)])
        lr, momentum = -w[0], w[1] if len(w) > 1 else 0.0
        scales = [top_rate if self.lr else 1.0, top_momentum if self.momentum else 1.0]
        scaled = [value * scale for value, scale in zip(w, scales, strict=False)]
        return Choice(parameters, directions, scaled, model, lr, momentum)

    def _model(
        self, parameters: list[nn.Parameter], directions: list[dict[nn.Parameter, Tensor]],
        size: float,
    ) -> Quadratic:  # fmt: skip
        gradient = Gradient(self.pre.solved, parameters)
        vectors = [[v[p] for p in parameters] for v in directions]
        A = self.replay.curved(parameters, vectors, self.auto.fraction)
        D = torch.zeros_like(A)
        for i, u in enumerate(vectors):
            for j, v in enumerate(vectors[: i + 1]):
                dots = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(u, v, strict=True)]
                D[i, j] = D[j, i] = torch.stack([dot.double().cpu() for dot in dots]).sum()
        b = torch.stack([gradient.along(v) for v in directions]) / size
        return Quadratic(A + self.auto.l2 * D, D, b)

    @torch.no_grad()
    def move(self, optimizer: torch.optim.Optimizer, choice: Choice) -> None:
        """Take the step, decay the weights by the learning rate, and remember it for the next."""
        parameters, w = choice.moving, choice.w
        U = [choice.directions[0][p] for p in parameters]
        if len(w) > 1:
            steps = list(torch._foreach_mul([choice.directions[1][p] for p in parameters], w[1]))
            torch._foreach_add_(steps, U, alpha=w[0])
        else:
            steps = list(torch._foreach_mul(U, w[0]))
        rates, decays = by_parameter(optimizer, "lr"), by_parameter(optimizer, "weight_decay")
        top = max(rates.values())
        lr = max(-w[0], 0.0)  # uphill, beside the last step, it must not make weights grow
        for p in parameters:
            if decays[p]:
                p.mul_(1 - lr * (rates[p] / top if top else 0.0) * decays[p])
        torch._foreach_add_([p.data for p in parameters], steps)
        for p, step in zip(parameters, steps, strict=True):
            optimizer.state[p]["delta"] = step  # torch would not bring a "step" to another device


def moving(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters with a gradient."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if p.grad is not None]


def by_parameter(optimizer: torch.optim.Optimizer, name: str) -> dict[nn.Parameter, float]:
    """A setting of the groups, for each parameter."""
    return {p: float(group[name]) for group in optimizer.param_groups for p in group["params"]}


def _scaled(x: Tensor, own: float, top: float) -> Tensor:
    """Relative to the largest of the groups; no copy where they are the same."""
    return x if own == top or top == 0 else x * (own / top)
