"""The layer's Fisher block itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from natgrad import linalg
from natgrad.blocks.base import Block
from natgrad.blocks.counts import gathered, per_example
from natgrad.damping import Constant, EigenvalueDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import Cost, Rows, committed, eigh, passes, product
from natgrad.linalg import Eigen
from natgrad.sample import Sample

__all__ = ["Exact"]


class Exact(Block):
    """``F_l = E[vec(J) vec(J)^T]`` from per-example gradients: ``(o i)^2`` numbers.

    For small layers, for layers in many small groups (scale and shift of norms: one 2x2 block per
    unit), and as the reference for everything else. A plain number as damping is added to the
    eigenvalues.
    """

    @staticmethod
    def default_damping(value: float) -> Constant:
        """Added to the eigenvalues."""
        return Constant(value)

    eigenvalues_only = True

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        dim = shape[0] * shape[1]
        self.F = self._moment(dim, dim)
        self._zeros("F_values", dim)
        self._zeros("F_vectors", dim, dim)

    def observe(self, sample: Sample) -> None:
        """``2 n c (t o i + (o i)^2)`` flop."""
        total = None
        for J in sample.gradients():
            rows = J.flatten(-2).flatten(-3, -2)
            part = rows.mT @ rows
            total = part if total is None else total + part
        if total is not None:
            self.F.add(total, sample.examples)

    def factors(self) -> Mapping[str, Factor]:
        """The block itself."""
        return {"F": Factor(self.F.mean())}

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take its eigendecomposition."""
        found = decompositions["F"]
        assert isinstance(found, Eigen)
        assert isinstance(found.vectors, Tensor)
        self.get_buffer("F_values").copy_(found.values)
        self.get_buffer("F_vectors").copy_(found.vectors)
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        """``(F_l + damping I)^-1 vec(M)``."""
        l, U = self.get_buffer("F_values"), self.get_buffer("F_vectors")
        return linalg.eigen_solve(Eigen(l, U), M.flatten(-2), self.ridge()).reshape(M.shape)

    def ridge(self) -> Tensor | float:
        """What is added to the eigenvalues."""
        trace = self.get_buffer("F_values").sum()
        return cast(EigenvalueDamping, self.damping).ridge(trace, self.dim)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Of the decomposition in use."""
        damped = self.get_buffer("F_values") + self.ridge()
        return damped.amin(), damped.amax()

    def cost(self, rows: Rows) -> Cost:
        """``2 n c (t o i + (o i)^2)``, an eigendecomposition, ``4 (o i)^2`` to solve."""
        n, c = rows.examples, rows.columns
        dim = self.shape[0] * self.shape[1]
        gradients = (*gathered(self.shape, rows, False), *per_example(self.shape, rows))
        return Cost(
            (*gradients, product(dim, c * n, dim), committed(dim * dim)),
            (eigh(dim), passes(dim * dim, 9, 10, fresh=3)),
            (product(1, dim, dim), product(1, dim, dim), passes(dim, 14, 8, fresh=5)),
            self.dtype.itemsize,
        ).times(self.count)

    def product(self, M: Tensor) -> Tensor:
        """``F_l vec(M)``."""
        return (self.F.mean() @ M.flatten(-2).unsqueeze(-1)).squeeze(-1).reshape(M.shape)

    def dense(self) -> Tensor:
        """The block."""
        return self.F.mean()

    def eigenvalues(self) -> Tensor:
        """Its eigenvalues."""
        return linalg.eigenvalues(self.F.mean()).flatten()

    def trace(self) -> Tensor:
        """``E |J|^2``."""
        return linalg.trace(self.F.mean()).sum()

    def squared_norm(self) -> Tensor:
        """Sum of the squared entries."""
        return self.F.mean().square().sum()
