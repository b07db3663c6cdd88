"""Solvers of ``argmin_x |J x - b|^2 + ridge |x|^2``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.least_squares.system import System

__all__ = ["ConjugateGradient", "Solution", "Solver", "solve"]


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients on the normal equations, from products with ``J`` and ``J^T`` alone.

    In the form that keeps the residual ``b - J x`` instead of that of the normal equations (CGLS,
    Hestenes & Stiefel 1952; Björck 1996, section 7.4). One iteration costs about two backward
    passes over all residuals; the error falls as ``((sqrt(k) - 1) / (sqrt(k) + 1))^i`` with ``k``
    the condition number of ``J^T J + ridge I``, so that small damping needs many.

    Args:
        tolerance: stop where the gradient of the problem is this much smaller than at ``x = 0``.
        iterations: the most of them.
        warm_start: begin with the solution of the last step.

    Raises:
        ValueError: an argument out of range.
    """

    tolerance: float = 1e-8
    iterations: int = 200
    warm_start: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.tolerance < 1 and self.iterations >= 1):
            raise ValueError(f"an argument is out of range: {self}")

    def solve(self, system: System, b: Tensor, ridge: float, start: Tensor | None) -> Solution:
        """The solution, from ``start [P]`` or zero."""
        first = system.transposed(b)
        x = torch.zeros_like(first) if start is None else start.to(first)
        left = b if start is None else b - system.product(x)
        s = first if start is None else system.transposed(left) - ridge * x
        p, gamma, enough = s, s.square().sum(), self.tolerance * first.norm()
        for k in range(self.iterations):
            if bool(s.norm() <= enough) or not bool(gamma > 0):
                return Solution(x, "cg", k)
            q = system.product(p)
            alpha = gamma / (q.square().sum() + ridge * p.square().sum())
            x, left = x + alpha * p, left - alpha * q
            s = system.transposed(left) - ridge * x
            before, gamma = gamma, s.square().sum()
            p = s + (gamma / before) * p
        return Solution(x, "cg", self.iterations)


Solver: TypeAlias = Literal["auto", "dense", "woodbury", "cg"] | ConjugateGradient


class Solution(NamedTuple):
    """``x [P]``, by which way, and after how many iterations (none of a direct solver)."""

    x: Tensor
    way: str
    iterations: int = 0


def solve(
    system: System, b: Tensor, ridge: float, solver: Solver, start: Tensor | None = None
) -> Solution:
    """Solve by the way that is asked for; ``"auto"`` takes the smaller matrix.

    ``"dense"`` works with ``J^T J [P, P]``, ``"woodbury"`` with ``J J^T [R, R]``; where the damping
    would drown in rounding beside them, with orthogonal factors of ``J`` and the damping instead,
    and without damping it is the pseudo-inverse (:func:`natgrad.linalg.ridge_least_squares`).

    Args:
        system: the problem.
        b: what ``J x`` should be ``[R]``.
        ridge: the damping.
        solver: the way.
        start: where an iteration begins.
    """
    if isinstance(solver, ConjugateGradient):
        return solver.solve(system, b, ridge, start)
    if system.J is None:
        return ConjugateGradient().solve(system, b, ridge, start)
    R, P = system.J.shape
    way = ("dense" if P <= R else "woodbury") if solver == "auto" else solver
    x = linalg.ridge_least_squares(system.J, b, ridge, tall=way == "dense")
    return Solution(x, way)
