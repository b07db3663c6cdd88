"""Blocks that are one Kronecker product: what K-FAC and TKFAC have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor

from natgrad import linalg
from natgrad.blocks.base import Block
from natgrad.blocks.counts import (
    from_left,
    from_right,
    gathered,
    quotient,
    second_moment,
    shifted,
    turned_rows,
)
from natgrad.blocks.sides import Side, side
from natgrad.damping import EigenvalueDamping, FactoredDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import Cost, Rows, Work, eigh, inverse, passes, rows_pay, warm
from natgrad.linalg import Eigen
from natgrad.sample import Sample
from natgrad.split import flat, mirrors

__all__ = ["TwoFactor"]


class TwoFactor(Block):
    """``F_l ~ G (x) A``; a subclass says how ``A`` and ``G`` are estimated.

    With factored damping the factors are inverted (Cholesky) at the decomposition, damping
    included; with damping of the eigenvalues they are eigendecomposed, and the damping enters at
    every solve. Where input rows are unit vectors ``A`` is diagonal and kept as a vector. A factor
    wider than ``widest`` is replaced by the blocks on its diagonal, an approximation: what lies
    between them is never kept, and everything here speaks of the matrix without it.
    """

    A_of_inputs: ClassVar[bool] = False  #: whether ``A`` knows nothing of the gradients

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        #: whether the damping is in the factors, which are inverted
        self.is_factored = isinstance(self.damping, FactoredDamping)
        o, i = shape
        self.input, self.output = (
            side(i, self.diagonal_input, self.widest),
            side(o, False, self.widest),
        )
        self.A = self._moment(
            *self.input.shape, of_inputs=self.A_of_inputs, of_products=self.input.is_whole
        )
        self.G = self._moment(*self.output.shape, of_products=self.output.is_whole)
        if self.is_factored:
            self._zeros("A_inverse", *self.input.shape)
            self._zeros("G_inverse", *self.output.shape)
            return
        self._zeros("A_values", i)
        self._zeros("G_values", o)
        self._zeros("G_vectors", *self.output.shape)
        if not self.diagonal_input:
            self._zeros("A_vectors", *self.input.shape)

    @property
    def sizes(self) -> str:
        """Of both factors, and in how many blocks where split."""
        return f"A {self.input}, G {self.output}"

    @abstractmethod
    def matrices(self) -> tuple[Tensor, Tensor]:
        """``(A, G)`` with ``F_l ~ G (x) A``, as they are kept (:mod:`natgrad.blocks.sides`)."""

    def factors(self) -> Mapping[str, Factor]:
        """``A`` and ``G``, with their ridges if the damping is factored."""
        kept = self.matrices()
        A, G = self.input.matrix(kept[0]), self.output.matrix(kept[1])
        diagonal = self.diagonal_input
        if self.is_factored:
            ridge_A, ridge_G = self._ridges(*kept)
            return {"A": Factor(A, ridge_A, diagonal), "G": Factor(G, ridge_G)}
        if self.eigen_kind == "fresh" or not self.is_ready:
            return {"A": Factor(A, diagonal=diagonal), "G": Factor(G)}
        last_A, last_G = (eigen.vectors for eigen in self.eigen())
        return {"A": Factor(A, diagonal=diagonal, last=last_A), "G": Factor(G, last=last_G)}

    def _ridges(self, A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        o, i = self.shape
        damping = cast(FactoredDamping, self.damping)
        return damping.ridges(self.input.trace(A), self.output.trace(G), i, o)

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Take the inverses, or the eigendecompositions."""
        for name, found in decompositions.items():
            if not isinstance(found, Eigen):
                self.get_buffer(f"{name}_inverse").copy_(flat(found))
                continue
            self.get_buffer(f"{name}_values").copy_(found.values)
            if found.vectors is not None:
                self.get_buffer(f"{name}_vectors").copy_(flat(found.vectors))
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        """``G^-1 M A^-1``, ``2 o i (o + i)`` flop; twice that in the eigenbases."""
        if self.is_factored:
            G_inverse, A_inverse = (self._for_products(f"{x}_inverse") for x in ("G", "A"))
            lowered = M.to(G_inverse.dtype)
            G, A = self.output.matrix(G_inverse), self.input.matrix(A_inverse)
            return linalg.kron_solve(G, A, lowered).to(M.dtype)
        A_, G_ = self.eigen()
        return linalg.kron_eigen_solve(G_, A_, M, self.ridge(), self.product_dtype)

    def ridge(self) -> Tensor | float:
        """What is added to the eigenvalues; the product of the ridges where factored."""
        if self.is_factored:
            ridge_A, ridge_G = self._ridges(*self.matrices())
            return (ridge_A * ridge_G).mean()
        A, G = self.eigen()
        trace = (A.values.sum(-1) * G.values.sum(-1)).sum()
        return cast(EigenvalueDamping, self.damping).ridge(trace, self.dim)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Products of those of the factors, by power iteration where these are inverted."""
        if not self.is_factored:
            A, G = self.eigen()
            ridge = self.ridge()
            smallest = A.values.amin(-1) * G.values.amin(-1)
            return smallest.amin() + ridge, (A.values.amax(-1) * G.values.amax(-1)).amax() + ridge
        A_, G_ = self.matrices()
        ridge_A, ridge_G = self._ridges(A_, G_)
        largest = (self.input.largest(A_) + ridge_A) * (self.output.largest(G_) + ridge_G)
        A_inverse, G_inverse = self.get_buffer("A_inverse"), self.get_buffer("G_inverse")
        top = self.input.largest(A_inverse) * self.output.largest(G_inverse)
        return 1 / top.amax(), largest.amax()

    def cost(self, rows: Rows) -> Cost:
        """``2 n t (i^2 + c o^2)``; inverses or eigendecompositions; two products, or four."""
        return self.cost_of(rows, self.solved_rows(rows))

    def cost_of(self, rows: Rows, solved: int) -> Cost:
        """The same, with a solve from so many rows of the user's backward pass, or its gradient."""
        without_inputs = self.diagonal_input or self._plain(rows)
        return Cost(
            (*gathered(self.shape, rows, without_inputs), *self._observing(rows)),
            self._decomposing(),
            self._solving(solved),
            self.dtype.itemsize,
        ).times(self.count)

    def _observing(self, rows: Rows) -> tuple[Work, ...]:
        """Two second moments, as :meth:`observe` takes them."""
        n, t, c = self._kept(rows)[:3]
        plain = rows.moment if self._plain(rows) else None
        A = (
            self._moment_of(n * t, self.input)
            if plain is None
            else shifted(plain, self.input, rows.kernel)
        )
        return *A, *self._moment_of(c * n * t, self.output)

    def _moment_of(self, rows: int, side: Side) -> tuple[Work, ...]:
        mirrored = mirrors(rows, side.width, bool(self.groups), self.ready.device)
        return second_moment(rows, side, mirrored)

    def _plain(self, rows: Rows) -> bool:
        """Whether ``A`` is taken of images, not of rows."""
        if rows.moment is None or not self.A_of_inputs or self.shared != "expand":
            return False
        whole = self.input.split is None
        return whole or rows.moment < rows.examples * rows.positions * self.input.entries

    def _kept(self, rows: Rows) -> Rows:
        """Positions that are left where they are reduced."""
        reduced = self.shared == "reduce" and not self.diagonal_input
        return rows._replace(positions=1) if reduced else rows

    def _decomposing(self) -> tuple[Work, ...]:
        """And the means, ridges, finite checks and copies around them."""
        eigen = eigh if self.eigen_kind == "fresh" else warm
        decomposed = inverse if self.is_factored else eigen
        sides = [side for side in (self.input, self.output) if not side.diagonal]
        around = [passes(side.entries, 9, 10, fresh=3) for side in sides]
        return *(decomposed(w).times(b) for side in sides for b, w in side.runs), *around

    def _solving(self, rows: int) -> tuple[Work, ...]:
        """The products of :meth:`solve`, the gradient put together and written back.

        Args:
            rows: that the first two are of, in place of the gradient; 0 for that.
        """
        o, i = self.shape
        products = *from_left(self.output, i), *from_right(o, self.input)
        first = turned_rows(self.shape, rows, self.input, self.output) if rows else products
        if self.is_factored:
            return *first, passes(o * i, 4, 6, fresh=1)
        return *first, *products, *quotient(o * i), passes(o * i, 4, 6, fresh=1)

    def rows_pay(self, count: int) -> bool:
        """Where rows are few enough, with factored damping."""
        return self.is_factored and self.few(count)

    def few(self, count: int) -> bool:
        """Whether so many rows times both factors cost less than the gradient does."""
        entries = self.output.entries, self.input.entries
        return not self.diagonal_input and rows_pay(self.shape, entries, count)

    def solve_rows(self, rows: Sample) -> Tensor:
        """``(g G^-1)^T (a A^-1)`` where the rows are few, else ``G^-1 (g^T a) A^-1``."""
        if not self.rows_pay(rows.examples * rows.positions):
            return self.solve(rows.gradient_sum())
        A_inverse, G_inverse = (self._for_products(f"{x}_inverse") for x in ("A", "G"))
        rotated = rows.to(A_inverse.dtype).rotated(
            self.input.matrix(A_inverse), self.output.matrix(G_inverse)
        )
        return rotated.gradient_sum().to(self.dtype)

    def eigen(self) -> tuple[Eigen, Eigen]:
        """The eigendecompositions of ``A`` and ``G`` now in use."""
        U_A = None if self.diagonal_input else self.input.matrix(self.get_buffer("A_vectors"))
        U_G = self.output.matrix(self.get_buffer("G_vectors"))
        return Eigen(self.get_buffer("A_values"), U_A), Eigen(self.get_buffer("G_values"), U_G)

    def product(self, M: Tensor) -> Tensor:
        """``G M A``."""
        A, G = self.matrices()
        return linalg.kron_solve(self.output.matrix(G), self.input.matrix(A), M)

    def dense(self) -> Tensor:
        """``G (x) A``."""
        A, G = self.matrices()
        return linalg.kron(self.output.dense(G), self.input.dense(A))

    def eigenvalues(self) -> Tensor:
        """All products of an eigenvalue of ``G`` with one of ``A``."""
        A, G = self.matrices()
        l_A, l_G = self.input.eigenvalues(A), self.output.eigenvalues(G)
        return (l_G.unsqueeze(-1) * l_A.unsqueeze(-2)).flatten()

    def trace(self) -> Tensor:
        """``tr A tr G``."""
        A, G = self.matrices()
        return (self.input.trace(A) * self.output.trace(G)).sum()

    def squared_norm(self) -> Tensor:
        """``|A|^2 |G|^2``."""
        A, G = self.matrices()
        return (self.input.squared_norm(A) * self.output.squared_norm(G)).sum()
