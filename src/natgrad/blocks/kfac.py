"""K-FAC: the layer's block as one Kronecker product of two second moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from natgrad import linalg
from natgrad.blocks.base import Block
from natgrad.damping import Factored, FactoredDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.linalg import Eigen
from natgrad.moments import Moment
from natgrad.sample import Sample

__all__ = ["KFAC"]


class KFAC(Block):
    """``F_l ~ G (x) A`` with ``A = E[a a^T]`` and ``G = E[g g^T]``.

    Martens & Grosse 2015 (arXiv 1503.05671), section 3. Layers with shared weights (Eschenhagen
    et al. 2023, arXiv 2311.00636):

    * ``shared="expand"``: every position is a row. ``A`` is the mean over examples and positions,
      ``G`` the mean over examples of the sum over positions. Exact for a deep linear network with
      squared error and one loss term per position (V:B13). It is KFC (Grosse & Martens 2016) with
      the factor ``t`` moved from one side to the other, which gives another ``pi`` (V:C25).
    * ``shared="reduce"``: ``a`` is averaged and ``g`` summed over positions first. Exact for a deep
      linear network with sum-pooled outputs (V:B12).

    The block is exact for a single example, for deep linear networks with squared error, and
    wherever ``a`` and ``g`` are independent (V:B1, V:B2, V:B6); else it is an approximation.

    With factored damping the factors are inverted (Cholesky), with damping of the eigenvalues they
    are eigendecomposed. The damping enters at the decomposition, or at every solve, respectively.
    """

    default_damping = Factored

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        o, i = shape
        self.A = Moment(i, i, decay=self.decay, dtype=self.dtype, device=self.device)
        self.G = Moment(o, o, decay=self.decay, dtype=self.dtype, device=self.device)
        for name, d in (("A", i), ("G", o)):
            if self._factored:
                self.register_buffer(f"{name}_inverse", self.A.value.new_zeros(d, d))
            else:
                self.register_buffer(f"{name}_values", self.A.value.new_zeros(d))
                self.register_buffer(f"{name}_vectors", self.A.value.new_zeros(d, d))

    @property
    def _factored(self) -> bool:
        return isinstance(self.damping, FactoredDamping)

    def observe(self, sample: Sample) -> None:
        """``2 n t (i^2 + c o^2)`` flop."""
        a, g = sample.a, sample.g
        if self.shared == "reduce":
            a, g = a.mean(1), g.sum(2)
        a, g = a.flatten(0, -2), g.flatten(0, -2)
        self.A.add(a.mT @ a, len(a))
        self.G.add(g.mT @ g, sample.examples)

    def factors(self) -> Mapping[str, Factor]:
        """``A`` and ``G``, with their ridges if the damping is factored."""
        A, G = self.A.mean(), self.G.mean()
        if not isinstance(self.damping, FactoredDamping):
            return {"A": Factor(A), "G": Factor(G)}
        ridge_A, ridge_G = self.damping.ridges(A, G)
        return {"A": Factor(A, ridge_A), "G": Factor(G, ridge_G)}

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take the inverses, or the eigendecompositions."""
        for name, found in decompositions.items():
            if isinstance(found, Eigen):
                self.get_buffer(f"{name}_values").copy_(found.values)
                self.get_buffer(f"{name}_vectors").copy_(found.vectors)
            else:
                self.get_buffer(f"{name}_inverse").copy_(found)
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        """``G^-1 M A^-1``, ``2 o i (o + i)`` flop; twice that in the eigenbases."""
        if isinstance(self.damping, FactoredDamping):
            return linalg.kron_solve(self.get_buffer("G_inverse"), self.get_buffer("A_inverse"), M)
        A, G = self._eigen("A"), self._eigen("G")
        ridge = self.damping.ridge(A.values.sum() * G.values.sum(), M.numel())
        return linalg.kron_eigen_solve(G, A, M, ridge)

    def solve_rows(self, a: Tensor, g: Tensor) -> Tensor:
        """``(g G^-1)^T (a A^-1)`` where the rows are few, else ``G^-1 (g^T a) A^-1``."""
        o, i = self.shape
        if not self._factored or len(a) * (o * o + i * i) >= o * i * (o + i):
            return self.solve(g.mT @ a)
        return (g @ self.get_buffer("G_inverse")).mT @ (a @ self.get_buffer("A_inverse"))

    def _eigen(self, name: str) -> Eigen:
        return Eigen(self.get_buffer(f"{name}_values"), self.get_buffer(f"{name}_vectors"))

    def dense(self) -> Tensor:
        """``G (x) A``."""
        return linalg.kron(self.G.mean(), self.A.mean())
