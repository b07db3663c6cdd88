"""The quadratic model of the loss, and how well it foretells what a step does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natgrad.curvature import Curvature, Solved

__all__ = ["StepModel"]


class StepModel:
    """``m(delta) = <g, delta> + 1/2 <delta, F delta>`` around the parameters before a step.

    ``F`` is the curvature as it is approximated, without damping; parameters that it does not
    cover enter with their gradient alone.

    Args:
        curvature: of the model.
        solved: the layers' gradients of the step.
        parameters: all parameters of the step, whose gradients are still those of uncovered ones.
    """

    def __init__(
        self, curvature: Curvature, solved: Sequence[Solved], parameters: Sequence[nn.Parameter]
    ) -> None:
        self.curvature, self.solved = curvature, solved
        covered = {id(p) for s in solved for p in s.view.parameters().values()}
        self._before = {id(p): p.detach().clone() for p in parameters}
        self._rest = [
            (p, p.grad.clone()) for p in parameters if p.grad is not None and id(p) not in covered
        ]

    def change(self) -> Tensor:
        """``m(delta)`` for the step that the parameters have made since."""
        directions = [self._direction(s) for s in self.solved]
        linear = [
            (s.M * delta).sum()
            for s, delta in zip(self.solved, directions, strict=True)
            if s.M is not None
        ]
        linear += [(grad * self._moved(p)).sum() for p, grad in self._rest]
        views = [s.view for s in self.solved]
        curved = self.curvature.quadratic(list(zip(views, directions, strict=True)))
        return torch.stack([term.to(curved) for term in linear]).sum() + curved / 2

    def ratio(self, before: float, after: float) -> float:
        """The loss's change over the model's: 1 where the model is right (MATH 7)."""
        foretold = float(self.change())
        return (after - before) / foretold if foretold else float("nan")

    def _moved(self, p: nn.Parameter) -> Tensor:
        return p.detach() - self._before[id(p)]

    def _direction(self, solved: Solved) -> Tensor:
        slots = solved.view.slots()
        moved = {name: slot.of(self._moved(slot.parameter)) for name, slot in slots.items()}
        return solved.view.to_matrix(moved)
