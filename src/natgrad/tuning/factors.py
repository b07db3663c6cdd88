"""The damping of the factors, apart from that of the quadratic model."""

from __future__ import annotations

import torch

from natgrad.damping import LevenbergMarquardt
from natgrad.preconditioner import Preconditioner
from natgrad.tuning.auto import Choice, Chooser

__all__ = ["FactorSearch"]


class FactorSearch:
    """Three candidates for the blocks' damping, compared by what the quadratic model foretells.

    ``gamma^2 / w^2, gamma^2, gamma^2 w^2`` with ``w = decay^(factors_every / 2)`` (Martens & Grosse
    2015, section 6.6, where ``gamma`` is what ``pi`` splits over the factors and ``T_2`` is
    ``factors_every``). A search decomposes and chooses a step up to three times more.

    Args:
        preconditioner: whose blocks are damped.
        damping: holds the blocks' value beside the model's.
        chooser: of the step with each candidate.
    """

    def __init__(
        self, preconditioner: Preconditioner, damping: LevenbergMarquardt, chooser: Chooser
    ) -> None:
        self.pre, self.damping, self.chooser = preconditioner, damping, chooser

    def due(self, k: int) -> bool:
        """Whether step ``k``, counted from 0, compares candidates."""
        every = self.damping.factors_every
        return every is not None and k > 0 and k % every == 0

    @torch.no_grad()
    def best(self, optimizer: torch.optim.Optimizer, size: float) -> Choice:
        """The step with the best candidate, whose natural gradients are in ``.grad`` afterwards."""
        now, factor = self.damping.for_factors, self.damping.factors_ratio
        found, solved = [], now
        for value in (now, now / factor, now * factor):
            if value != solved:
                self._solve(value)
            choice, solved = self.chooser.choose(optimizer, size), value
            found.append((choice.change(self.chooser.damping()), value))
        winner = min(found)[1]
        if winner == solved:
            return choice
        self._solve(winner)
        return self.chooser.choose(optimizer, size)

    def _solve(self, value: float) -> None:
        """Natural gradients with this damping of the factors."""
        self.damping.of_factors = value
        for view, M, _ in self.pre.solved:
            if M is not None:
                view.set_grad(M)
        self.pre.curvature.refresh()
        solved = self.pre.curvature.solve()
        self.pre.solved = [s.apart() for s in solved]
        self.pre.bounds.write(solved, 1.0)
