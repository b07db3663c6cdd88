"""Pure functions on (stacked) symmetric positive semi-definite matrices.

The only file that calls ``torch.linalg``. Every function accepts leading batch dimensions and
keeps dtype and device. ``A [.., d, d]`` is an input factor, ``G [.., m, m]`` an output factor and
``M [.., m, d]`` a gradient matrix; ``vec`` flattens row-major, so ``vec(g a^T) = g (x) a``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from natgrad.padded import times
from natgrad.split import Matrix

__all__ = [
    "Eigen",
    "add_ridge",
    "eigen_solve",
    "eigenvalues",
    "eigh",
    "eigh_from",
    "equilibrated_solve",
    "extreme_eigenvalues",
    "finite",
    "inverse",
    "kron",
    "kron_eigen_solve",
    "kron_solve",
    "largest_eigenvalue",
    "lower_roots",
    "mean_diagonal",
    "quotient_back",
    "ridge_is_heard",
    "ridge_least_squares",
    "right_singular",
    "rotated_product",
    "rotated_quotient",
    "symmetrize",
    "trace",
    "woodbury_solve",
]


class Eigen(NamedTuple):
    """Eigenvalues ``l [.., d]`` (ascending, >= 0) and eigenvectors in the columns of ``U``.

    Of a block-diagonal matrix ``U`` is one too, and values ascend within each block.
    """

    values: Tensor
    vectors: Matrix | None  #: None is the identity, the basis of a diagonal matrix


def symmetrize(M: Tensor) -> Tensor:
    """Symmetric part ``(M + M^T) / 2``."""
    return (M + M.mT) / 2


def mean_diagonal(M: Tensor) -> Tensor:
    """Mean eigenvalue ``tr M / d`` of each matrix in the stack, shape ``[..]``."""
    return M.diagonal(dim1=-2, dim2=-1).mean(-1)


def add_ridge(M: Tensor, ridge: Tensor | float) -> Tensor:
    """``M + ridge I``, with one ridge per matrix of the stack."""
    damped = M.clone()
    ridge = torch.as_tensor(ridge, dtype=M.dtype, device=M.device)
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    return damped


def trace(M: Tensor) -> Tensor:
    """``tr M`` of each matrix in the stack, shape ``[..]``."""
    return M.diagonal(dim1=-2, dim2=-1).sum(-1)


def eigenvalues(M: Tensor) -> Tensor:
    """Eigenvalues of positive semi-definite matrices, ascending, ``[.., d]``."""
    values: Tensor = torch.linalg.eigvalsh(symmetrize(M))
    return values.clamp_min(0)


def eigh(M: Tensor) -> tuple[Eigen, Tensor]:
    """Eigendecomposition ``M = U diag(l) U^T`` of positive semi-definite matrices.

    Negative eigenvalues are rounding and become zero. A relative ridge of 1e-7, subtracted again,
    keeps exactly repeated zero eigenvalues (constant inputs, dead units) apart from rounding; it
    moves no eigenvector. What fails in the given precision is tried again in float64.

    Returns:
        The decomposition, and a boolean ``[..]`` that says which matrices of the stack succeeded.
    """
    ridge = 1e-7 * mean_diagonal(M)
    jittered = add_ridge(symmetrize(M), ridge)
    try:
        values, vectors = torch.linalg.eigh(jittered)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return _eigh_one_by_one(jittered, ridge)
    values = (values - ridge.unsqueeze(-1)).clamp_min(0)
    return Eigen(values, vectors), torch.isfinite(values).all(-1)


def _eigh_one_by_one(M: Tensor, ridge: Tensor) -> tuple[Eigen, Tensor]:
    d = M.shape[-1]
    flat, ridges = M.reshape(-1, d, d), ridge.reshape(-1)
    values, vectors = flat.new_zeros(flat.shape[:2]), torch.zeros_like(flat)
    succeeded = torch.zeros(len(flat), dtype=torch.bool, device=M.device)
    for k, matrix in enumerate(flat):
        try:
            l, U = torch.linalg.eigh(matrix.double())
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        values[k], vectors[k] = (l - ridges[k]).clamp_min(0), U
        succeeded[k] = True
    batch = M.shape[:-2]
    return Eigen(values.reshape(*batch, d), vectors.reshape(M.shape)), succeeded.reshape(batch)


def eigh_from(M: Tensor, U: Tensor) -> tuple[Eigen, Tensor]:
    """One step of orthogonal iteration from the orthogonal ``U [.., d, d]``: ``Q R = M U``.

    The values are ``diag(Q^T M Q)``, whose sum is the trace. ``Q`` is exact where ``U`` was, and
    repeated steps tend to the eigenbasis of an ``M`` that stays, each pair of directions as fast as
    their eigenvalues differ: ``|l_j / l_k|`` a step. Directions are made orthogonal in falling
    order of ``diag(U^T M U)``, so that rounding in those of small eigenvalues spoils no large one.

    Returns:
        The approximation, and a boolean ``[..]`` that says which of the stack are finite.
    """
    M = symmetrize(M)
    moved = U.mT @ M  # of columns as rows, in whose order they are gathered and factorised fastest
    falling = (U.mT * moved).sum(-1, keepdim=True).argsort(dim=-2, descending=True)
    Q = torch.linalg.qr(moved.gather(-2, falling.expand_as(moved)).mT).Q
    values, rising = (Q.mT * (Q.mT @ M)).sum(-1).clamp_min(0).sort(dim=-1)
    Q = Q.mT.gather(-2, rising.unsqueeze(-1).expand_as(Q)).mT
    return Eigen(values, Q), torch.isfinite(values).all(-1)


def inverse(M: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of positive definite matrices by Cholesky, in float64 if need be, ``d^3`` products.

    Returns:
        ``M^-1 [.., d, d]``, and a boolean ``[..]`` that says which of the stack succeeded.
    """
    L = torch.empty_like(M, memory_format=torch.contiguous_format).mT  # by columns, as LAPACK does
    L, info = torch.linalg.cholesky_ex(M, out=(L, M.new_empty(M.shape[:-2], dtype=torch.int32)))
    succeeded = info == 0
    if bool(succeeded.all()):
        inv = torch.cholesky_inverse(L, out=L).mT  # symmetric to the bit
        return inv, finite(inv)
    inv = torch.cholesky_inverse(_where(succeeded, L))
    if M.dtype != torch.float64:
        retried, retried_ok = inverse(M[~succeeded].double())
        inv[~succeeded] = retried.to(M.dtype)
        succeeded = succeeded.clone().masked_scatter_(~succeeded, retried_ok)
    return inv, succeeded & finite(inv)


def lower_roots(M: Tensor, width: int = 160) -> tuple[Tensor, Tensor, Tensor]:
    """``L`` of ``L L^T = M``, ``L^-1``, and which have no pivot that may be rounding."""
    L, info = torch.linalg.cholesky_ex(M)
    noise = torch.finfo(M.dtype).eps * M.shape[-1] * M.diagonal(dim1=-2, dim2=-1).amax(-1)
    succeeded = (info == 0) & (L.diagonal(dim1=-2, dim2=-1).amin(-1).square() > noise)
    inv = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M).clone()
    for k in range(0, M.shape[-1], width):  # the columns of a part have zeros above
        column = inv[..., k:, k : k + width]
        column.copy_(torch.linalg.solve_triangular(L[..., k:, k:], column, upper=False))
    return L, inv, succeeded & finite(inv)


def finite(M: Tensor) -> Tensor:
    """Which matrices of the stack are finite, ``[..]``; one whose sum overflows is not."""
    return torch.isfinite(M.sum((-2, -1)))


def _where(succeeded: Tensor, L: Tensor) -> Tensor:
    """``L`` with the identity in place of factors that failed (their content is undefined)."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.where(succeeded[..., None, None], L, eye)


def kron(G: Tensor, A: Tensor) -> Tensor:
    """Kronecker product ``G (x) A``: the block whose solve is :func:`kron_solve`."""
    (m, n), (d, e) = G.shape[-2:], A.shape[-2:]
    product = G[..., :, None, :, None] * A[..., None, :, None, :]
    return product.reshape(*product.shape[:-4], m * d, n * e)


def kron_solve(G_inv: Matrix, A_inv: Matrix, M: Tensor) -> Tensor:
    """``(G (x) A)^-1 vec(M) = vec(G^-1 M A^-1)``, with the inverses given.

    A one-dimensional ``A_inv`` is a diagonal matrix. With the factors themselves in place of the
    inverses this is the product ``(G (x) A) vec(M)``.
    """
    if isinstance(A_inv, Tensor) and A_inv.ndim == 1:
        return (G_inv @ M) * A_inv
    return times(G_inv @ M, A_inv)


def kron_eigen_solve(
    G: Eigen, A: Eigen, M: Tensor, damping: Tensor | float, dtype: torch.dtype | None = None
) -> Tensor:
    """``(G (x) A + damping I)^-1 vec(M)``: exact damping through both eigenbases.

    ``U_G [(U_G^T M U_A) / (l_G l_A^T + damping)] U_A^T`` (MATH 1, V:B10). Where the denominator
    is zero (``damping = 0`` and a singular factor) this is the pseudo-inverse.
    """
    scale = G.values.unsqueeze(-1) * A.values.unsqueeze(-2)
    return rotated_quotient(G.vectors, A.vectors, M, scale, damping, dtype)


def rotated_quotient(
    U_G: Matrix | None,
    U_A: Matrix | None,
    M: Tensor,
    scale: Tensor,
    damping: Tensor | float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``U_G [(U_G^T M U_A) / (scale + damping)] U_A^T``; the pseudo-inverse without damping.

    Args:
        U_G: ``[.., m, m]``; None is the identity.
        U_A: ``[.., d, d]``; likewise.
        M: ``[.., m, d]``.
        scale: ``[.., m, d]``.
        damping: a number.
        dtype: of the four matrix products; None that of ``M``.
    """
    wanted = dtype or M.dtype
    U_G, U_A = (None if U is None else U.to(wanted) for U in (U_G, U_A))
    R = _rotate(U_G, U_A, M.to(wanted)).to(M.dtype)
    return quotient_back(U_G, U_A, R, scale, damping, wanted)


def quotient_back(
    U_G: Matrix | None,
    U_A: Matrix | None,
    R: Tensor,
    scale: Tensor,
    damping: Tensor | float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``U_G [R / (scale + damping)] U_A^T``, the second half of :func:`rotated_quotient`."""
    own, wanted = R.dtype, dtype or R.dtype
    U_G, U_A = (None if U is None else U.to(wanted) for U in (U_G, U_A))
    cutoff = torch.finfo(own).eps * max(R.shape[-2:]) * scale.amax((-2, -1), keepdim=True)
    damping = torch.as_tensor(damping, dtype=scale.dtype, device=scale.device)
    kept = (scale > cutoff) | (damping > 0)
    R = torch.where(kept, R / (scale + damping), torch.zeros_like(R))
    return _rotate_back(U_G, U_A, R.to(wanted)).to(own)


def rotated_product(U_G: Matrix | None, U_A: Matrix | None, M: Tensor, factor: Tensor) -> Tensor:
    """``U_G [(U_G^T M U_A) o factor] U_A^T``."""
    return _rotate_back(U_G, U_A, _rotate(U_G, U_A, M) * factor)


def _rotate(U_G: Matrix | None, U_A: Matrix | None, M: Tensor) -> Tensor:
    M = M if U_G is None else U_G.mT @ M
    return M if U_A is None else times(M, U_A)


def _rotate_back(U_G: Matrix | None, U_A: Matrix | None, R: Tensor) -> Tensor:
    R = R if U_G is None else U_G @ R
    return R if U_A is None else R @ U_A.mT


def eigen_solve(M: Eigen, v: Tensor, damping: Tensor | float) -> Tensor:
    """``(U diag(l) U^T + damping I)^-1 v`` for ``v [.., d]``; the pseudo-inverse where zero."""
    return rotated_quotient(
        None, M.vectors, v.unsqueeze(-2), M.values.unsqueeze(-2), damping
    ).squeeze(-2)


def extreme_eigenvalues(M: Tensor) -> Tensor | None:
    """Eigenvalues of symmetric matrices in float64, signs kept; None if they can't be found."""
    try:
        values: Tensor = torch.linalg.eigvalsh(symmetrize(M.double()))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return values


def right_singular(J: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values ``[r]`` and right singular vectors ``[P, r]`` of ``J [R, P]``."""
    _, s, Vh = torch.linalg.svd(J, full_matrices=False)
    return s.square(), Vh.mT


def largest_eigenvalue(M: Tensor, iterations: int = 20) -> Tensor:
    """Largest eigenvalue of positive semi-definite matrices ``[.., d, d]``, by power iteration.

    A Rayleigh quotient, so never above it; the start is the column of the largest diagonal entry,
    ``2 d^2`` flop an iteration. Zero where the matrix is.
    """
    top = M.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = top[..., None, None].expand(*M.shape[:-1], 1)
    tiny = torch.finfo(M.dtype).tiny
    v = M.gather(-1, index)
    for _ in range(iterations):
        v = v / v.norm(dim=-2, keepdim=True).clamp_min(tiny)
        v = M @ v
    squared = v.square().sum((-2, -1)).clamp_min(tiny)
    return (v * (M @ v)).sum((-2, -1)) / squared


def equilibrated_solve(M: Tensor, v: Tensor) -> Tensor:
    """``M^+ v`` for ``v [.., d]``, after scaling ``M`` to a unit diagonal; 0 where that is 0.

    Scaling makes the cut of the pseudo-inverse blind to the units of the entries.
    """
    diagonal = M.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    scale = torch.where(diagonal > 0, scale, torch.zeros_like(scale))
    scaled = M * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    inverse: Tensor = torch.linalg.pinv(scaled, rtol=1e-12, hermitian=True)
    return scale * (inverse @ (scale * v).unsqueeze(-1)).squeeze(-1)


def woodbury_solve(U: Tensor, damping: float, v: Tensor) -> Tensor:
    """``(U U^T + damping I)^-1 v`` for ``U [P, r]`` with few columns (MATH 0.2, V:A9).

    ``(v - U (damping I + U^T U)^-1 U^T v) / damping``: ``P r^2 + r^3`` in place of ``P^3``.

    Raises:
        ValueError: ``damping`` is not positive (the identity divides by it).
    """
    if not damping > 0:
        raise ValueError(f"woodbury_solve needs damping > 0, got {damping}")
    inner = add_ridge(U.mT @ U, damping)
    correction: Tensor = U @ torch.linalg.solve(inner, U.mT @ v)
    return (v - correction) / damping


def ridge_is_heard(ridge: float, trace: float, dtype: torch.dtype, data: torch.dtype) -> bool:
    """Whether a ridge beside a Gram matrix of this trace stands out of its rounding.

    Args:
        ridge: added to the eigenvalues.
        trace: of the matrix.
        dtype: that the matrix is computed in.
        data: dtype of what it is made of.
    """
    heard: bool = ridge > max(torch.finfo(dtype).eps ** 0.5, 100 * torch.finfo(data).eps) * trace
    return heard


def ridge_least_squares(J: Tensor, b: Tensor, ridge: float, *, tall: bool) -> Tensor:
    """``argmin_x |J x - b|^2 + ridge |x|^2`` for ``J [R, P]``, as accurate as ``J`` is.

    ``(J^T J + ridge I)^-1 J^T b`` (``tall``) ``= J^T (J J^T + ridge I)^-1 b``, by Cholesky. Where
    the ridge would drown in the rounding of these products, which have the squared condition of
    ``J``, by the orthogonal factors ``Q R`` of ``[J; sqrt(ridge) I]`` or ``[J^T; sqrt(ridge) I]``:
    ``R^-1 Q^T [b; 0]`` and the first rows of ``Q R^-T b``. Without a ridge the solution of least
    length, from the singular vectors.

    Args:
        J: the matrix.
        b: the right-hand side ``[R]``.
        ridge: the damping.
        tall: work with ``[P, P]`` matrices instead of ``[R, R]``.

    Returns:
        ``x [P]``.
    """
    if ridge <= 0:
        return _shortest(J, b)
    if ridge_is_heard(ridge, float(J.square().sum()), J.dtype, J.dtype):
        K = add_ridge(J.mT @ J if tall else J @ J.mT, ridge)
        L, info = torch.linalg.cholesky_ex(K)
        if int(info) == 0:
            right = J.mT @ b if tall else b
            found = torch.cholesky_solve(right.unsqueeze(-1), L).squeeze(-1)
            return found if tall else J.mT @ found
    A = J if tall else J.mT
    n = A.shape[1]
    stacked = torch.cat([A, ridge**0.5 * torch.eye(n, dtype=J.dtype, device=J.device)])
    factors, tau = torch.geqrf(stacked)
    R = factors[:n].triu()
    if tall:
        right = torch.cat([b, b.new_zeros(n)]).unsqueeze(-1)
        rotated = torch.ormqr(factors, tau, right, left=True, transpose=True)
        x: Tensor = torch.linalg.solve_triangular(R, rotated[:n], upper=True).squeeze(-1)
        return x
    z = torch.linalg.solve_triangular(R.mT, b.unsqueeze(-1), upper=False)
    padded = torch.cat([z, z.new_zeros(len(stacked) - n, 1)])
    return torch.ormqr(factors, tau, padded, left=True)[: len(A)].squeeze(-1)


def _shortest(J: Tensor, b: Tensor) -> Tensor:
    """The pseudo-inverse of ``J`` times ``b``."""
    U, s, Vh = torch.linalg.svd(J, full_matrices=False)
    kept = s > torch.finfo(J.dtype).eps * max(J.shape) * s.amax()
    along = torch.where(kept, (U.mT @ b) / s, torch.zeros_like(s))
    return torch.mv(Vh.mT, along)
