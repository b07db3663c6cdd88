"""Learning rate and momentum from the quadratic model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natgrad.arguments import check_choice, check_range
from natgrad.preconditioner import Preconditioner
from natgrad.quadratic import Gradient, Quadratic
from natgrad.replay import Replay
from natgrad.span import DELTA, Span

__all__ = ["Auto", "Choice", "Chooser"]


@dataclass(frozen=True)
class Auto:
    """Learning rate and momentum from the quadratic model of each step.

    ``alpha, mu`` minimise ``M(delta) + (damping + l2)/2 |delta|^2`` over ``delta = -alpha U + mu
    delta_before`` (Martens & Grosse 2015, sections 6.4 and 7). That takes ``F``'s products with
    both directions, each one forward pass with tangents of the part of the batch, which costs
    three forward passes of it: with a quarter 1.5 of the whole batch, half as much as a gradient.

    ``per`` divides the natural gradient into parts ``U_l``, each a direction by itself: ``delta =
    -sum_l alpha_l U_l + mu delta_before``, and the model chooses all ``alpha_l`` together, with the
    curvature between them, of which blocks know nothing (a deviation from the paper). Where layers
    need very different rates the first tens of steps gain much; but every coefficient is one of
    this batch, and the more there are, the noisier the iterates become: an average of them
    (``average=``) makes up for it. A part takes one more forward pass with tangents.

    Args:
        fraction: of the batch, its first examples, that ``F`` is taken of.
        l2: weight of a penalty ``l2/2 |w|^2`` that is part of the loss.
        per: what has a learning rate of its own: ``"step"`` all together, ``"group"`` each
            parameter group, ``"layer"`` each layer, and all that no layer covers. With several a
            rate may be negative.

    Raises:
        ValueError: an argument out of range.
    """

    fraction: float = 0.25
    l2: float = 0.0
    per: Literal["step", "group", "layer"] = "step"

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0 < self.fraction <= 1, "in (0, 1]")
        check_range("l2", self.l2, self.l2 >= 0, "at least 0")
        check_choice("per", self.per, ("step", "group", "layer"))


@dataclass(frozen=True)
class Choice:
    """A step along the natural gradients and along the last step.

    Attributes:
        span: these directions.
        w: coefficient of each.
        model: quadratic model over these coefficients.
        lr: as the model chose it, before the groups' multipliers; with several that
            of the whole natural gradient which comes closest, ``sum_l alpha_l |U_l|^2 / |U|^2``.
        momentum: likewise.
    """

    span: Span
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
        groups = [group for group in optimizer.param_groups if group["params"]]
        own = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
        span = Span.of(
            own, groups, optimizer.state, lr=self.lr, momentum=self.momentum,
            parts=self._parts(own),
        )  # fmt: skip
        model = self._model(span, size)
        w = span.chosen(model, self.damping())
        momentum = w[span.natural] if len(w) > span.natural else 0.0
        return Choice(span, span.multiplied(w), model, _rate(span, model, w), momentum)

    def _parts(self, own: Sequence[tuple[nn.Parameter, dict[str, Any]]]) -> list[list[int]]:
        """Numbers of the parameters that share a rate; a tied one is the first layer's."""
        left = {id(p): k for k, (p, _) in enumerate(own)}
        members: list[list[nn.Parameter]] = []
        if self.auto.per == "group":
            groups = {id(group): group for _, group in own}
            members = [group["params"] for group in groups.values()]
        elif self.auto.per == "layer":
            members = [list(solved.view.parameters().values()) for solved in self.pre.solved]
        parts = [[left.pop(id(p)) for p in each if id(p) in left] for each in members]
        return [part for part in [*parts, list(left.values())] if part]

    def _model(self, span: Span, size: float) -> Quadratic:
        gradient = Gradient(self.pre.solved, span.parameters)
        A = self.replay.curved(span.parameters, span.directions, self.auto.fraction)
        D = torch.zeros_like(A)
        for i, u in enumerate(span.directions):
            for j, v in enumerate(span.directions[: i + 1]):
                D[i, j] = D[j, i] = _dot(u, v)
        moves = (
            {p: x for p, x in zip(span.parameters, v, strict=True) if x is not None}
            for v in span.directions
        )
        b = torch.stack([gradient.along(move) for move in moves]) / size
        return Quadratic(A + self.auto.l2 * D, D, b)

    @torch.no_grad()
    def move(self, optimizer: torch.optim.Optimizer, choice: Choice) -> None:
        """Take the step, decay the weights by the learning rate, and remember it for the next."""
        span = choice.span
        steps = span.steps(choice.w)
        for p, lost in zip(span.parameters, span.lost(choice.w), strict=True):
            if lost:
                p.mul_(1 - lost)
        torch._foreach_add_([p.data for p in span.parameters], steps)
        for p, step in zip(span.parameters, steps, strict=True):
            optimizer.state[p][DELTA] = step


def _dot(u: Sequence[Tensor | None], v: Sequence[Tensor | None]) -> Tensor:
    """``<u, v>`` in float64."""
    pairs = [(x, y) for x, y in zip(u, v, strict=True) if x is not None and y is not None]
    dots = [torch.dot(x.flatten(), y.flatten()).double().cpu() for x, y in pairs]
    return torch.stack(dots).sum() if dots else torch.zeros((), dtype=torch.float64)


def _rate(span: Span, model: Quadratic, w: Sequence[float]) -> float:
    """The learning rate of the natural gradients as a whole."""
    if span.natural == 1:
        return -w[0]
    squares = [float(model.D[k, k]) for k in range(span.natural)]
    along = sum(value * square for value, square in zip(w, squares, strict=False))
    return -along / sum(squares) if any(squares) else 0.0
