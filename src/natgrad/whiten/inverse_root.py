"""``P = (A + e I)^(-1/2)`` with ``e = eps tr A / k``, from the matrix or the rows behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.roots import Method, square_roots

__all__ = ["InverseRoot", "inverse_root", "inverse_root_of_rows"]


class InverseRoot(NamedTuple):
    """``P = D + rows^T core``, symmetric; without ``rows`` it is ``D``."""

    D: Tensor  #: ``[(q,) k, k]``, or as a row ``[(q,) 1, k]`` a diagonal
    rows: Tensor | None = None  #: ``[(q,) r, k]``
    core: Tensor | None = None  #: ``[(q,) r, k]``
    inverse: Tensor | None = None  #: ``P^-1 [(q,) k, k]`` where it was asked for

    def dense(self) -> Tensor:
        """``P [(q,) k, k]``."""
        D = self.D.squeeze(-2).diag_embed() if self.D.shape[-2] < self.D.shape[-1] else self.D
        if self.rows is None or self.core is None:
            return D
        return D + self.rows.mT @ self.core

    def times(self, scale: Tensor) -> InverseRoot:
        """``scale P`` for a scalar."""
        core, inverse = self.core, self.inverse
        return InverseRoot(
            self.D * scale, self.rows, core if core is None else core * scale,
            inverse if inverse is None else inverse / scale,
        )  # fmt: skip

    @property
    def finite(self) -> Tensor:
        """Whether it can be used, a boolean tensor."""
        good = self.D.isfinite().all()
        return good if self.core is None else good & self.core.isfinite().all()


def inverse_root(
    A: Tensor,
    eps: float,
    method: Method = "newton-schulz",
    tolerance: float | None = None,
    iterations: int | None = None,
) -> InverseRoot:
    """``(A + e I)^(-1/2)`` of second moments ``A [(q,) k, k]``.

    Where ``A`` is zero, ``P`` is the identity. A method that fails is followed by an
    eigendecomposition in float64, unless it was told its number of iterations.
    """
    damped = linalg.add_ridge(A, _ridge(linalg.trace(A), A.shape[-1], eps))
    return InverseRoot(_roots(damped, method, tolerance, iterations)[1])


def inverse_root_of_rows(
    Y: Tensor,
    eps: float,
    method: Method = "newton-schulz",
    tolerance: float | None = None,
    inverse: bool = False,
) -> InverseRoot:
    """``(Y^T Y + e I)^(-1/2)`` of ``r < k`` rows ``Y [(q,) r, k]``, through ``K = Y Y^T``.

    With ``R = (K + e I)^(1/2)``, which is ``r x r``,

        ``(Y^T Y + e I)^(-1/2) = e^(-1/2) (I - Y^T (K + e I + e^(1/2) R)^-1 Y)``

    and ``(Y^T Y + e I)^(1/2) = e^(1/2) I + Y^T (R + e^(1/2) I)^-1 Y`` [ours]: both sides agree on
    every eigenvector of ``Y^T Y`` and nothing cancels in what is inverted. To multiply by it costs
    ``4 r k`` per row instead of ``2 k^2``.

    Args:
        Y: the rows, scaled so that ``A = Y^T Y``.
        eps: relative ridge, above 0.
        method: how ``R`` is found.
        tolerance: of an iteration.
        inverse: whether to return ``P^-1`` too.
    """
    k = Y.shape[-1]
    K = Y @ Y.mT
    e = _ridge(linalg.trace(K), k, eps)
    damped = linalg.add_ridge(K, e)
    R = _roots(damped, method, tolerance, None)[0]
    e = e[..., None, None]
    root = e.sqrt()
    core = (_inverse(damped + root * R) @ Y).div_(-root)
    P = InverseRoot((1 / root).expand(*Y.shape[:-2], 1, k).clone(), Y, core)
    if not inverse:
        return P
    eye = torch.eye(k, dtype=Y.dtype, device=Y.device)
    other = _inverse(linalg.add_ridge(R, root[..., 0, 0])) @ Y
    return P._replace(inverse=root * eye + Y.mT @ other)


def _ridge(trace: Tensor, k: int, eps: float) -> Tensor:
    return torch.where(trace > 0, trace * (eps / k), 1.0)


def _inverse(M: Tensor) -> Tensor:
    inverse, succeeded = linalg.inverse(linalg.symmetrize(M))
    return inverse.where(succeeded[..., None, None], torch.nan)


def _roots(
    A: Tensor, method: Method, tolerance: float | None, iterations: int | None
) -> tuple[Tensor, Tensor]:
    roots = square_roots(A, method, tolerance=tolerance, iterations=iterations)
    if iterations is None and not bool((roots.residual < 1).all()):
        better = square_roots(A.double(), "eigh")
        return better.root.to(A.dtype), better.inverse_root.to(A.dtype)
    return roots.root, roots.inverse_root
