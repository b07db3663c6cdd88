"""The quadratic model of the loss, and how well it foretells what a step does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.curvature import Curvature, Solved
from natgrad.layers import LayerView

__all__ = ["Gradient", "Quadratic", "StepModel"]


@dataclass(frozen=True)
class Quadratic:
    """``M(w) = <b, w> + 1/2 w^T A w`` over the coefficients of ``k`` directions ``v_i``.

    Martens & Grosse 2015 (arXiv 1503.05671), sections 6.4 and 7: with ``A_ij = v_i^T F v_j``,
    ``D_ij = <v_i, v_j>`` and ``b_i = <g, v_i>`` it is the quadratic model of the loss's change
    along ``sum_i w_i v_i``.

    Args:
        A: curvature, ``[k, k]`` in float64.
        D: inner products, ``[k, k]``.
        b: products with the gradient, ``[k]``.
    """

    A: Tensor
    D: Tensor
    b: Tensor

    def minimiser(self, damping: float, fixed: Sequence[float | None]) -> list[float]:
        """The ``w`` that minimises ``M(w) + damping/2 w^T D w``, some of it given.

        Directions without length or curvature get 0, and all where it is not finite.

        Args:
            damping: added to the curvature.
            fixed: a coefficient each, or None where it is wanted.
        """
        w = torch.tensor([0.0 if value is None else value for value in fixed], dtype=self.A.dtype)
        free = [index for index, value in enumerate(fixed) if value is None]
        if free:
            damped = self.A + damping * self.D
            right = -(self.b + damped @ w)[free]
            found = linalg.equilibrated_solve(damped[free][:, free], right)
            w[free] = torch.where(found.isfinite().all(), found, 0.0)
        return [float(value) for value in w]

    def change(self, w: Sequence[float]) -> float:
        """``M(w)``, without damping."""
        coefficients = torch.tensor(w, dtype=self.A.dtype)
        return float(self.b @ coefficients + coefficients @ self.A @ coefficients / 2)


class Gradient:
    """The plain gradient of a step: layers' matrices, and what no layer covers.

    Args:
        solved: the layers' gradients, with the plain ones known.
        parameters: all of the step; the uncovered ones' ``.grad`` is still plain.
    """

    def __init__(self, solved: Sequence[Solved], parameters: Sequence[nn.Parameter]) -> None:
        self.solved = [s for s in solved if s.M is not None]
        covered = {id(p) for s in solved for p in s.view.parameters().values()}
        self.rest = [
            (p, p.grad.clone()) for p in parameters if p.grad is not None and id(p) not in covered
        ]

    def along(self, move: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """``<g, v>`` for displacements; parameters without one stay."""
        terms = [torch.dot(grad.flatten(), move[p].flatten()) for p, grad in self.rest if p in move]
        for view, M, _ in self.solved:
            assert M is not None
            if any(p in move for p in view.parameters().values()):
                terms.append(torch.dot(M.reshape(-1), matrix_of(view, move).reshape(-1).to(M)))
        return torch.stack([term.double().cpu() for term in terms]).sum()


def matrix_of(view: LayerView, move: Mapping[nn.Parameter, Tensor]) -> Tensor:
    """A layer's part of a displacement, as a matrix; parameters without one stay."""
    moves = {
        name: slot.of(move.get(slot.parameter, torch.zeros_like(slot.parameter)))
        for name, slot in view.slots().items()
    }
    return view.to_matrix(moves)


class StepModel:
    """``m(delta) = <g, delta> + 1/2 <delta, F delta>`` around the parameters before a step.

    ``F`` is the curvature as it is approximated, without damping; parameters that it does not
    cover enter with their gradient alone.

    Args:
        curvature: of the model.
        gradient: of the step.
    """

    def __init__(self, curvature: Curvature, gradient: Gradient) -> None:
        self.curvature, self.gradient = curvature, gradient

    def change(self, move: Mapping[nn.Parameter, Tensor], size: float = 1.0) -> float:
        """``m(delta)`` for a displacement of each parameter.

        Args:
            move: the displacement.
            size: how many times the mean over examples the user's loss is.
        """
        directions = [(s.view, matrix_of(s.view, move)) for s in self.gradient.solved]
        curved = float(self.curvature.quadratic(directions)) if directions else 0.0
        return float(self.gradient.along(move)) + size * curved / 2
