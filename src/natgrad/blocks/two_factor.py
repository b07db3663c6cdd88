"""Blocks that are one Kronecker product: what K-FAC and TKFAC have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor

from natgrad import linalg
from natgrad.blocks.base import Block
from natgrad.blocks.counts import gathered, quotient, second_moment, shifted
from natgrad.damping import EigenvalueDamping, FactoredDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import Cost, Rows, Work, eigh, inverse, passes, product, rows_pay
from natgrad.linalg import Eigen
from natgrad.sample import Sample

__all__ = ["TwoFactor"]


class TwoFactor(Block):
    """``F_l ~ G (x) A``; a subclass says how ``A`` and ``G`` are estimated.

    With factored damping the factors are inverted (Cholesky) at the decomposition, damping
    included; with damping of the eigenvalues they are eigendecomposed, and the damping enters at
    every solve. Where input rows are unit vectors ``A`` is diagonal and kept as a vector.
    """

    A_of_inputs: ClassVar[bool] = False  #: whether ``A`` knows nothing of the gradients

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        self._factored = isinstance(self.damping, FactoredDamping)
        o, i = shape
        A_shape = (i,) if self.diagonal_input else (i, i)
        self.A = self._moment(*A_shape, of_inputs=self.A_of_inputs)
        self.G = self._moment(o, o)
        if self._factored:
            self._zeros("A_inverse", *A_shape)
            self._zeros("G_inverse", o, o)
            return
        self._zeros("A_values", i)
        self._zeros("G_values", o)
        self._zeros("G_vectors", o, o)
        if not self.diagonal_input:
            self._zeros("A_vectors", i, i)

    @abstractmethod
    def matrices(self) -> tuple[Tensor, Tensor]:
        """``(A, G)`` with ``F_l ~ G (x) A``; ``A`` a vector where the input is diagonal."""

    def factors(self) -> Mapping[str, Factor]:
        """``A`` and ``G``, with their ridges if the damping is factored."""
        A, G = self.matrices()
        diagonal = self.diagonal_input
        if not self._factored:
            return {"A": Factor(A, diagonal=diagonal), "G": Factor(G)}
        ridge_A, ridge_G = self._ridges(A, G)
        return {"A": Factor(A, ridge_A, diagonal), "G": Factor(G, ridge_G)}

    def _ridges(self, A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        o, i = self.shape
        damping = cast(FactoredDamping, self.damping)
        return damping.ridges(self._trace_A(A), linalg.trace(G), i, o)

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take the inverses, or the eigendecompositions."""
        for name, found in decompositions.items():
            if not isinstance(found, Eigen):
                self.get_buffer(f"{name}_inverse").copy_(found)
                continue
            self.get_buffer(f"{name}_values").copy_(found.values)
            if found.vectors is not None:
                self.get_buffer(f"{name}_vectors").copy_(found.vectors)
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        """``G^-1 M A^-1``, ``2 o i (o + i)`` flop; twice that in the eigenbases."""
        if self._factored:
            G_inverse, A_inverse = (self._for_products(f"{x}_inverse") for x in ("G", "A"))
            return linalg.kron_solve(G_inverse, A_inverse, M.to(G_inverse.dtype)).to(M.dtype)
        A, G = self.eigen()
        return linalg.kron_eigen_solve(G, A, M, self.ridge(), self.product_dtype)

    def ridge(self) -> Tensor | float:
        """What is added to the eigenvalues; the product of the ridges where factored."""
        if self._factored:
            ridge_A, ridge_G = self._ridges(*self.matrices())
            return (ridge_A * ridge_G).mean()
        A, G = self.eigen()
        trace = (A.values.sum(-1) * G.values.sum(-1)).sum()
        return cast(EigenvalueDamping, self.damping).ridge(trace, self.dim)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Products of those of the factors, by power iteration where these are inverted."""
        if not self._factored:
            A, G = self.eigen()
            ridge = self.ridge()
            smallest = A.values.amin(-1) * G.values.amin(-1)
            return smallest.amin() + ridge, (A.values.amax(-1) * G.values.amax(-1)).amax() + ridge
        A_, G_ = self.matrices()
        ridge_A, ridge_G = self._ridges(A_, G_)
        top_A = A_.amax(-1) if self.diagonal_input else linalg.largest_eigenvalue(A_)
        largest = (top_A + ridge_A) * (linalg.largest_eigenvalue(G_) + ridge_G)
        A_inverse, G_inverse = self.get_buffer("A_inverse"), self.get_buffer("G_inverse")
        top = A_inverse.amax(-1) if self.diagonal_input else linalg.largest_eigenvalue(A_inverse)
        return 1 / (top * linalg.largest_eigenvalue(G_inverse)).amax(), largest.amax()

    def cost(self, rows: Rows) -> Cost:
        """``2 n t (i^2 + c o^2)``; inverses or eigendecompositions; two products, or four."""
        without_inputs = self.diagonal_input or self._plain(rows)
        return Cost(
            (*gathered(self.shape, rows, without_inputs), *self._observing(rows)),
            self._decomposing(),
            self._solving(),
            self.dtype.itemsize,
        ).times(self.count)

    def _observing(self, rows: Rows) -> tuple[Work, ...]:
        """Two second moments, as :meth:`observe` takes them."""
        o, i = self.shape
        n, t, c = self._kept(rows)[:3]
        A = second_moment(n * t, i, self.diagonal_input)
        if rows.moment is not None and self._plain(rows):
            A = shifted(rows.moment, i)
        return *A, *second_moment(c * n * t, o)

    def _plain(self, rows: Rows) -> bool:
        """Whether ``A`` is taken of images, not of rows."""
        return rows.moment is not None and self.A_of_inputs and self.shared == "expand"

    def _kept(self, rows: Rows) -> Rows:
        """Positions that are left where they are reduced."""
        reduced = self.shared == "reduce" and not self.diagonal_input
        return rows._replace(positions=1) if reduced else rows

    def _decomposing(self) -> tuple[Work, ...]:
        """And the means, ridges, finite checks and copies around them."""
        o, i = self.shape
        decomposed = inverse if self._factored else eigh
        widths = (o,) if self.diagonal_input else (i, o)
        around = [passes(d * d, 9, 10, fresh=3) for d in widths]
        return *(decomposed(d) for d in widths), *around

    def _solving(self) -> tuple[Work, ...]:
        """The products of :meth:`solve`, the gradient put together and written back."""
        o, i = self.shape
        sides = (o,) if self.diagonal_input else (o, i)
        products = [product(o, side, i) for side in sides]
        if self._factored:
            return *products, passes(o * i, 4, 6, fresh=1)
        return *products, *products, *quotient(o * i), passes(o * i, 4, 6, fresh=1)

    def rows_pay(self, count: int) -> bool:
        """Where rows are few enough, with factored damping."""
        return self._factored and not self.diagonal_input and rows_pay(self.shape, count)

    def solve_rows(self, rows: Sample) -> Tensor:
        """``(g G^-1)^T (a A^-1)`` where the rows are few, else ``G^-1 (g^T a) A^-1``."""
        if not self.rows_pay(rows.examples * rows.positions):
            return self.solve(rows.gradient_sum())
        A_inverse, G_inverse = (self._for_products(f"{x}_inverse") for x in ("A", "G"))
        rotated = rows.to(A_inverse.dtype).rotated(A_inverse, G_inverse)
        return rotated.gradient_sum().to(self.dtype)

    def eigen(self) -> tuple[Eigen, Eigen]:
        """The eigendecompositions of ``A`` and ``G`` now in use."""
        U_A = None if self.diagonal_input else self.get_buffer("A_vectors")
        A = Eigen(self.get_buffer("A_values"), U_A)
        return A, Eigen(self.get_buffer("G_values"), self.get_buffer("G_vectors"))

    def product(self, M: Tensor) -> Tensor:
        """``G M A``."""
        A, G = self.matrices()
        return linalg.kron_solve(G, A, M)

    def dense(self) -> Tensor:
        """``G (x) A``."""
        A, G = self.matrices()
        return linalg.kron(G, A.diag_embed() if self.diagonal_input else A)

    def eigenvalues(self) -> Tensor:
        """All products of an eigenvalue of ``G`` with one of ``A``."""
        A, G = self.matrices()
        l_A = A if self.diagonal_input else linalg.eigenvalues(A)
        return (linalg.eigenvalues(G).unsqueeze(-1) * l_A.unsqueeze(-2)).flatten()

    def trace(self) -> Tensor:
        """``tr A tr G``."""
        A, G = self.matrices()
        return (self._trace_A(A) * linalg.trace(G)).sum()

    def _trace_A(self, A: Tensor) -> Tensor:
        return A.sum(-1) if self.diagonal_input else linalg.trace(A)

    def squared_norm(self) -> Tensor:
        """``|A|^2 |G|^2``."""
        A, G = self.matrices()
        dims_A = -1 if self.diagonal_input else (-2, -1)
        return (A.square().sum(dims_A) * G.square().sum((-2, -1))).sum()
