"""The diagonal of the layer's Fisher block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from natgrad.blocks.base import Block
from natgrad.blocks.counts import gathered, squares
from natgrad.damping import Constant, EigenvalueDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import Cost, Rows, passes
from natgrad.sample import Sample

__all__ = ["Diagonal"]


class Diagonal(Block):
    """``F_l ~ diag(E[J^2])`` with the true per-example gradients ``J`` (exact on the diagonal).

    A plain number as damping is added to the diagonal.
    """

    @staticmethod
    def default_damping(value: float) -> Constant:
        """Added to the diagonal."""
        return Constant(value)

    eigenvalues_only = True
    solves_with_moments = True

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        self.squares = self._moment(*shape)

    def observe(self, sample: Sample) -> None:
        """``2 n c o i`` flop; ``t`` times that with shared weights."""
        self.squares.add(sample.squared_gradients(), sample.examples)

    def factors(self) -> Mapping[str, Factor]:
        """Nothing to decompose."""
        return {}

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Nothing to load."""
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        """``M / (E[J^2] + damping)``; zero where both are zero."""
        damped = self.squares.mean() + self.ridge()
        return torch.where(damped > 0, M / damped, torch.zeros_like(M))

    def ridge(self) -> Tensor | float:
        """What is added to the diagonal."""
        return cast(EigenvalueDamping, self.damping).ridge(self.squares.mean().sum(), self.dim)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Of the damped diagonal."""
        damped = self.squares.mean() + self.ridge()
        return damped.amin(), damped.amax()

    def cost(self, rows: Rows) -> Cost:
        """``2 n o i`` flop, ``2 n c t o i`` with shared weights; all the rest is elementwise."""
        diagonal, o_i = self.diagonal_input, self.shape[0] * self.shape[1]
        return Cost(
            (*gathered(self.shape, rows, diagonal), *squares(self.shape, rows, diagonal)),
            (),
            (passes(o_i, 14, 8, fresh=5),),
            self.dtype.itemsize,
        ).times(self.count)

    def product(self, M: Tensor) -> Tensor:
        """``E[J^2] M``, entry by entry."""
        return self.squares.mean() * M

    def dense(self) -> Tensor:
        """The diagonal matrix."""
        return self.squares.mean().flatten(-2).diag_embed()

    def eigenvalues(self) -> Tensor:
        """The diagonal."""
        return self.squares.mean().flatten()
