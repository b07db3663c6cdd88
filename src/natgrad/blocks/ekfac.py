"""Eigenvalue correction of any two-factor block: EKFAC from K-FAC, TEKFAC from TKFAC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks.base import Block
from natgrad.blocks.counts import (
    from_left,
    from_right,
    per_example,
    rotated_gradients,
    squares,
)
from natgrad.blocks.kfac import KFAC
from natgrad.blocks.tkfac import TKFAC
from natgrad.blocks.two_factor import TwoFactor
from natgrad.damping import Constant, EigenvalueDamping
from natgrad.decompose import Decomposition, Factor
from natgrad.flops import Cost, Rows, Work, committed, passes, product
from natgrad.moments import Moment
from natgrad.sample import Sample, gradients_are_fewer
from natgrad.split import Matrix, dense

__all__ = ["EKFAC", "TEKFAC", "EKFACRa", "EigenCorrected", "TEKFACRa"]


class EigenCorrected(Block):
    """``F_l ~ Q diag(s) Q^T``, ``Q = U_G (x) U_A`` the eigenbasis of a two-factor block.

    ``s = E[(U_G^T J U_A)^2] [o, i]`` is measured from the true per-example gradients ``J``, summed
    over shared positions before they are squared (V:C1, V:C23). In the given basis no other
    diagonal is nearer to ``F_l`` in the Frobenius norm (V:C4, V:C5), and the trace is kept.

    When the basis changes the running scale is carried over, ``s <- (R_G o R_G)^T s (R_A o R_A)``
    with ``R = U_old^T U_new``: exact for the matrix ``Q diag(s) Q^T``, and it keeps the trace
    (V:C18; the papers leave the stale scale). New scales are measured in the new basis.

    Two estimators of the scale (George et al. 2018, section 3.2): ``"intra"`` averages the squares
    of the per-example gradients, and is what all of the above holds for; ``"ra"`` squares the
    gradient of the batch mean, which is cheaper and smaller by a factor of the batch size: with
    sampled targets its expectation is ``diag(Q^T F_l Q) / n`` (V:A10), with true ones a squared
    mean is added. Damping and learning rate then mean something else at every batch size.

    A plain number as damping is added to the scale.
    """

    eigenvalues_only = True
    needs_rescale = True
    solves_with_moments = True
    of: ClassVar[type[TwoFactor]]  #: the block that gives the basis
    estimator: ClassVar[Literal["intra", "ra"]] = "intra"  #: of the scale

    @staticmethod
    def default_damping(value: float) -> Constant:
        """Added to the scale."""
        return Constant(value)

    def __init__(self, shape: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(shape, **kwargs)
        self.basis = type(self).of(shape, **{**kwargs, "damping": Constant(0.0)})
        self.scale = self._moment(*shape)

    @property
    def sizes(self) -> str:
        """Of the two-factor block."""
        return self.basis.sizes

    def observe(self, sample: Sample) -> None:
        """The moments of the two-factor block."""
        self.basis.observe(sample)

    def skip(self, examples: int) -> None:
        """In the moments of the two-factor block, and in the scale once there is a basis."""
        if self.is_ready:
            self.scale.add(torch.zeros_like(self.scale.value), examples)
        else:
            self.basis.skip(examples)

    def rescale(self, sample: Sample) -> None:
        """``2 n c t o i`` flop for gradients; to rotate rows or gradients, whichever are fewer."""
        if self.is_ready:
            A, G = self.basis.eigen()
            n = sample.examples
            if self.estimator == "intra":
                self.scale.add(sample.squared_gradients(A.vectors, G.vectors), n)
            else:  # a mean over batches, each counted by its size
                self.scale.add(sample.squared_mean_gradients(A.vectors, G.vectors) * n, n)

    def factors(self) -> Mapping[str, Factor]:
        """The factors of the two-factor block, to be eigendecomposed."""
        return self.basis.factors()

    def load(self, decompositions: Mapping[str, Decomposition]) -> None:
        """Change the basis and carry the scale over to it."""
        old = [None if e.vectors is None else e.vectors.clone() for e in self.basis.eigen()]
        self.basis.load(decompositions)
        if self.is_ready:
            R_A, R_G = (
                None if before is None or after.vectors is None else _between(before, after.vectors)
                for before, after in zip(old, self.basis.eigen(), strict=True)
            )
            self.scale.value.copy_(_carried(self.scale.value, R_A, R_G))
            if self.scale.pending is not None:
                self.scale.pending = _carried(self.scale.pending, R_A, R_G)
        self.ready.fill_(True)

    def observed(self) -> bool:
        """Whether the two-factor block has statistics."""
        return self.basis.observed()

    def basis_moments(self) -> Iterator[Moment]:
        """Those of the two-factor block."""
        return self.basis.moments()

    def scales(self) -> Tensor:
        """``s [(q,) o, i]``; the two-factor block's own eigenvalues until one is measured."""
        A, G = self.basis.eigen()
        product = G.values.unsqueeze(-1) * A.values.unsqueeze(-2)
        return torch.where(self.scale.weight > 0, self.scale.mean(), product)

    def solve(self, M: Tensor) -> Tensor:
        """``U_G [(U_G^T M U_A) / (s + damping)] U_A^T``, ``4 o i (o + i)`` flop."""
        A, G = self.basis.eigen()
        s = self.scales()
        ridge, dtype = self._ridge(s), self.product_dtype
        return linalg.rotated_quotient(G.vectors, A.vectors, M, s, ridge, dtype)

    def rows_pay(self, count: int) -> bool:
        """Where rows are few: two of the four products are of them then."""
        return self.basis.few(count)

    def solve_rows(self, rows: Sample) -> Tensor:
        """The same with ``U_G^T M U_A = (g U_G)^T (a U_A)``, where the rows are few."""
        if not self.rows_pay(rows.examples * rows.positions):
            return self.solve(rows.gradient_sum())
        A, G = self.basis.eigen()
        s, dtype = self.scales(), self.product_dtype or self.dtype
        rotated = rows.to(dtype).rotated(
            *(None if e.vectors is None else e.vectors.to(dtype) for e in (A, G))
        )
        R = rotated.gradient_sum().to(self.dtype)
        return linalg.quotient_back(G.vectors, A.vectors, R, s, self._ridge(s), self.product_dtype)

    def _ridge(self, scales: Tensor) -> Tensor | float:
        return cast(EigenvalueDamping, self.damping).ridge(scales.sum(), self.dim)

    def ridge(self) -> Tensor | float:
        """What is added to the scale."""
        return self._ridge(self.scales())

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Of the damped scale."""
        s = self.scales()
        damped = s + self._ridge(s)
        return damped.amin(), damped.amax()

    def cost(self, rows: Rows) -> Cost:
        """The two-factor block's, the rotation of rows and the scale, and its way between bases."""
        own = Cost(self._scaling(rows), self._carrying(), self._reading_scales())
        return self.basis.cost_of(rows, self.solved_rows(rows)).plus(own.times(self.count))

    def _scaling(self, rows: Rows) -> tuple[Work, ...]:
        """:meth:`rescale`."""
        shape, (n, t, c) = self.shape, rows[:3]
        (o, i), A, G = shape, self.basis.input, self.basis.output
        if self.estimator == "ra":
            added = passes(c * n * t * o, 3, c, fresh=1)  # of unit vectors
            mean = added if self.diagonal_input else product(o, n * t, i).times(c)
            means = mean, passes(c * o * i, 4, 3, fresh=2)
            turned = rotated_gradients(shape, rows._replace(examples=1), A, G)
            return *means, *turned, committed(o * i)
        if not self.diagonal_input and gradients_are_fewer(
            o, i, positions=t, columns=c, entries=(G.entries, A.entries)
        ):
            each = *per_example(shape, rows), *rotated_gradients(shape, rows, A, G)
            return *each, passes(c * n * o * i, 3, 2), committed(o * i)
        turned = *from_right(c * n * t, G), *from_right(n * t, A)
        return *turned, *squares(shape, rows, self.diagonal_input)

    def _carrying(self) -> tuple[Work, ...]:
        """The running scale's way to a new basis, in :meth:`load`."""
        (o, i), A, G = self.shape, self.basis.input, self.basis.output
        between = [product(w, w, w, b) for side in (A, G) for b, w in side.runs]
        moved = [passes(side.entries, 4, 2, fresh=2) for side in (A, G) if not side.diagonal]
        return *between, *from_left(G, i), *from_right(o, A), *moved, passes(o * i, 2)

    def _reading_scales(self) -> tuple[Work, ...]:
        """:meth:`scales`, on top of what a two-factor block does in its eigenbases."""
        return (passes(self.shape[0] * self.shape[1], 6, 3, fresh=3),)

    def product(self, M: Tensor) -> Tensor:
        """``U_G [(U_G^T M U_A) s] U_A^T``."""
        A, G = self.basis.eigen()
        return linalg.rotated_product(G.vectors, A.vectors, M, self.scales())

    def dense(self) -> Tensor:
        """``Q diag(s) Q^T``."""
        A, G = self.basis.eigen()
        s = self.scales()
        assert G.vectors is not None
        U_A = torch.ones_like(A.values).diag_embed() if A.vectors is None else dense(A.vectors)
        Q = linalg.kron(dense(G.vectors), U_A)
        return (Q * s.flatten(-2).unsqueeze(-2)) @ Q.mT

    def eigenvalues(self) -> Tensor:
        """The scale."""
        return self.scales().flatten()


class EKFAC(EigenCorrected):
    """Eigenvalue-corrected K-FAC (George et al. 2018, arXiv 1806.03884; MATH 2)."""

    of = KFAC


class TEKFAC(EigenCorrected):
    """Eigenvalue-corrected TKFAC (Gao et al. 2020, arXiv 2011.13609, eq. 3.1-3.4, 3.9; MATH 4).

    ``Theta`` of the paper is the scale, and enters without ``delta`` in front (3.2). Never further
    from ``F_l`` than TKFAC (Theorem 3.1, V:C10), by exactly ``|delta l_Psi l_Phi^T - Theta|^2``
    in squared Frobenius norm (V:C11).
    """

    of = TKFAC


class EKFACRa(EKFAC):
    """EKFAC with the running average of squared batch gradients as its scale."""

    estimator = "ra"


class TEKFACRa(TEKFAC):
    """TEKFAC with the running average of squared batch gradients as its scale."""

    estimator = "ra"


def _between(old: Matrix, new: Matrix) -> Matrix:
    """``U_old^T U_new``."""
    return old.mT @ new


def _carried(s: Tensor, R_A: Matrix | None, R_G: Matrix | None) -> Tensor:
    """``(R_G o R_G)^T s (R_A o R_A)``; None is the identity."""
    s = s if R_G is None else R_G.square().mT @ s
    return s if R_A is None else s @ R_A.square()
