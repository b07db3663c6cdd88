"""Square roots ``A^(1/2)`` and inverse square roots ``A^(-1/2)`` of positive definite matrices.

Pure functions of stacks ``A [.., d, d]``: :func:`eigh_roots` by eigendecomposition,
:func:`newton_schulz` by matrix products alone, :func:`denman_beavers` by inverses, and
:func:`square_roots`, which takes the method by name. ``A`` is to be positive definite: add a ridge
(:func:`natgrad.linalg.add_ridge`) to what may be singular. Every method computes in the precision
of ``A``, half precisions in float32, with TF32 and autocast off whatever the surrounding settings;
results have the dtype of ``A``. The roots are constants to autograd.

The iterations keep ``Z Y`` near the identity, where ``Y`` tends to ``A^(1/2)`` and ``Z`` to
``A^(-1/2)``. Their residual ``|I - Z Y|_F`` bounds the relative error that stopping leaves in any
eigenvalue of ``Z``. Rounding adds about ``eps`` times the condition number, which the residual
does not show: no method knows eigenvalues of ``A`` below ``eps |A|``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from natgrad import linalg

__all__ = ["Roots", "denman_beavers", "eigh_roots", "newton_schulz", "square_roots"]

Method: TypeAlias = Literal["eigh", "newton-schulz", "denman-beavers"]
Normalisation: TypeAlias = Literal["frobenius", "trace"]
_Pair: TypeAlias = tuple[Tensor, Tensor]
_Step: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], _Pair]

_MOST_ITERATIONS = 100  # a float64 matrix at the edge of being singular takes about 50


class Roots(NamedTuple):
    """Square roots of a stack of matrices; one that failed spoils none of the others.

    A residual of 1 or more says that the matrix failed, or was given too few iterations: in some
    direction the roots are not inverses of each other. It is infinite, and the roots may be NaN,
    where the matrix is not finite or the method broke down (singular, indefinite).
    """

    root: Tensor  #: ``Y = A^(1/2) [.., d, d]``, symmetric
    inverse_root: Tensor  #: ``Z = A^(-1/2) [.., d, d]``, symmetric
    residual: Tensor  #: ``|I - Z Y|_F [..]``, never NaN
    iterations: Tensor  #: iterations run ``[..]``, integers; 0 for the eigendecomposition


def square_roots(
    A: Tensor,
    method: Method = "eigh",
    *,
    tolerance: float | None = None,
    iterations: int | None = None,
) -> Roots:
    """``A^(1/2)`` and ``A^(-1/2)`` by the method of that name, in its normalised form.

    Args:
        A: symmetric positive definite matrices ``[.., d, d]``.
        method: ``"eigh"``, ``"newton-schulz"`` or ``"denman-beavers"``.
        tolerance: of an iteration, see :func:`newton_schulz`.
        iterations: of an iteration, see :func:`newton_schulz`.

    Raises:
        ValueError: no such method, options of an iteration for ``"eigh"``, or impossible input.

    >>> A = torch.diag(torch.tensor([4.0, 25.0]))
    >>> square_roots(A, "newton-schulz").root.round(decimals=3)
    tensor([[2., 0.],
            [0., 5.]])
    """
    if method == "eigh":
        if tolerance is not None or iterations is not None:
            raise ValueError("eigh takes neither tolerance nor iterations: it does not iterate")
        return eigh_roots(A)
    if method == "newton-schulz":
        return newton_schulz(A, tolerance=tolerance, iterations=iterations)
    if method == "denman-beavers":
        return denman_beavers(A, tolerance=tolerance, iterations=iterations)
    raise ValueError(f"method must be 'eigh', 'newton-schulz' or 'denman-beavers', got {method!r}")


def eigh_roots(A: Tensor) -> Roots:
    """``U diag(l^(1/2)) U^T`` and ``U diag(l^(-1/2)) U^T`` from ``A = U diag(l) U^T``.

    About ``9 d^3`` operations and three products. A matrix has failed if an eigenvalue comes out
    as zero or less.

    Args:
        A: symmetric positive definite matrices ``[.., d, d]``.

    Raises:
        ValueError: ``A`` is no stack of square floating-point matrices.
    """

    def compute(A: Tensor) -> Roots:
        (values, U), _ = linalg.eigh(A)  # one that failed has no finite inverse root
        assert isinstance(U, Tensor)  # linalg.eigh gives no implicit bases
        half = values.sqrt().unsqueeze(-2)
        Y, Z = (U * half) @ U.mT, (U / half) @ U.mT
        none = torch.zeros(len(A), dtype=torch.long, device=A.device)
        return _scaled(Roots(Y, Z, _excess(Y, Z).flatten(1).norm(dim=1), none), _one(A))

    return _each(A, compute)


def newton_schulz(
    A: Tensor,
    *,
    tolerance: float | None = None,
    iterations: int | None = None,
    normalise: Normalisation | None = "frobenius",
) -> Roots:
    """Coupled Newton-Schulz iteration: matrix products only, no factorisation.

    From ``Y = A / c``, ``Z = I``, repeat ``T = (3 I - Z Y) / 2``, ``Y <- Y T``, ``Z <- T Z``; then
    ``A^(1/2) = c^(1/2) Y`` and ``A^(-1/2) = c^(-1/2) Z``. With ``R = I - Z Y`` one iteration is
    ``R <- (3 R^2 + R^3) / 4``: an eigenvalue ``x`` of ``A / c`` costs ``log(1/x) / log(9/4)``
    iterations and about four more. Each is three products, ``6 d^3`` operations (the first, one
    product).

    Source: Liu & Liu 2021 (arXiv 2109.10100), equation (9), which prints it without ``c``: it then
    diverges for eigenvalues of 3 and more. Dividing by the Frobenius norm is from Lin & Maji 2017
    (arXiv 1707.06772), by the trace from Huang et al. 2019 (arXiv 1904.03441). ``Y T`` is evaluated
    as ``Y + Y R / 2``, which rounds less. The iterates are not made symmetric in between: that
    lets rounding grow.

    Args:
        A: symmetric positive definite matrices ``[.., d, d]``.
        tolerance: stop where ``|I - Z Y|_F`` is at most this, each matrix of the stack by itself.
            None is ``d eps``, or without measuring it if ``iterations`` are given.
        iterations: with a tolerance, at most so many (None: 100). Without, exactly so many.
        normalise: ``c`` is the Frobenius norm, the trace, or, for None, one: as printed. Then an
            eigenvalue between 3 and 5 may end at its negative root, which no residual shows.

    With a tolerance, a matrix also stops where its residual falls no further (its rounding floor)
    or grows (it is not positive definite); the better of its last two iterates is kept.

    Raises:
        ValueError: ``A`` is no stack of square floating-point matrices, or an option is out of
            range.
    """
    if normalise not in ("frobenius", "trace", None):
        raise ValueError(f"normalise must be 'frobenius', 'trace' or None, got {normalise!r}")

    def compute(A: Tensor) -> Roots:
        c = {"frobenius": _norm, "trace": linalg.trace, None: _one}[normalise](A)
        Y = A / c[:, None, None]
        first = linalg.add_ridge(Y / -2, 1.5)  # T; with Z = I two of the three products are saved
        found = _iterate(_newton_schulz_step, (Y @ first, first), tolerance, iterations)
        return _scaled(found, c)

    return _each(A, compute, tolerance, iterations)


def _newton_schulz_step(Y: Tensor, Z: Tensor, excess: Tensor | None) -> _Pair:
    E = _excess(Y, Z) if excess is None else excess
    return torch.baddbmm(Y, Y, E, alpha=-0.5), torch.baddbmm(Z, E, Z, alpha=-0.5)


def denman_beavers(
    A: Tensor,
    *,
    tolerance: float | None = None,
    iterations: int | None = None,
    balanced: bool = True,
) -> Roots:
    """Denman-Beavers iteration: ``Y <- (Y + Z^-1) / 2``, ``Z <- (Z + Y^-1) / 2``.

    From ``Y = A / c``, ``Z = I``, with ``c = (|A|_F / |A^-1|_F)^(1/2)``: this puts the spectrum
    evenly around one, and iterations are about ``log2(condition number) / 4 + 4``, half of those
    without. It converges for every positive definite matrix. Each iteration is two inverses by
    Cholesky, ``2 d^3`` operations, and with a tolerance one product, ``2 d^3`` more.

    Source: Denman & Beavers 1976; Liu & Liu 2021 (arXiv 2109.10100), equation (8),
    which has ``c = 1``.

    Args:
        A: symmetric positive definite matrices ``[.., d, d]``.
        tolerance: as for :func:`newton_schulz`.
        iterations: as for :func:`newton_schulz`.
        balanced: without, ``c = 1``, the iteration as printed.

    Raises:
        ValueError: ``A`` is no stack of square floating-point matrices, or an option is out of
            range.
    """

    def compute(A: Tensor) -> Roots:
        inverse = _inverse(A)
        c = _norm(A).sqrt() / _norm(inverse).sqrt() if balanced else _one(A)
        scale = c[:, None, None]
        first = tuple(linalg.add_ridge(M / 2, 0.5) for M in (A / scale, inverse * scale))
        found = _iterate(_denman_beavers_step, (first[0], first[1]), tolerance, iterations)
        return _scaled(found, c)

    return _each(A, compute, tolerance, iterations)


def _denman_beavers_step(Y: Tensor, Z: Tensor, excess: Tensor | None) -> _Pair:
    return (Y + _inverse(Z)) / 2, (Z + _inverse(Y)) / 2


def _inverse(M: Tensor) -> Tensor:
    inverse, succeeded = linalg.inverse(M)
    return torch.where(succeeded[:, None, None], inverse, math.nan)


def _iterate(step: _Step, pair: _Pair, tolerance: float | None, iterations: int | None) -> Roots:
    """Go on from the pair that the first iteration gave."""
    Y, Z = pair
    if iterations is None or tolerance is not None:
        tolerance = Y.shape[-1] * torch.finfo(Y.dtype).eps if tolerance is None else tolerance
        return _iterate_until(step, pair, tolerance, iterations or _MOST_ITERATIONS)
    for _ in range(iterations - 1):
        Y, Z = step(Y, Z, None)
    taken = torch.full((len(Y),), iterations, device=Y.device)
    return Roots(Y, Z, _excess(Y, Z).flatten(1).norm(dim=1), taken)


def _iterate_until(step: _Step, pair: _Pair, tolerance: float, most: int) -> Roots:
    """Until settled, each matrix by itself: those that are leave the stack."""
    Y, Z = pair
    alive = torch.arange(len(Y), device=Y.device)
    last = Roots(Y, Z, Y.new_full((len(Y),), math.inf), torch.zeros_like(alive))
    found = Roots(*(torch.empty_like(part) for part in last))
    for k in range(1, most + 1):
        excess = _excess(Y, Z)
        now = Roots(Y, Z, excess.flatten(1).norm(dim=1), torch.full_like(alive, k))
        settled = _settled(now.residual, last.residual, tolerance) | (k == most)
        if bool(settled.any()):
            for whole, part in zip(found, _better(now, last), strict=True):
                whole[alive[settled]] = part[settled]
            going = ~settled
            now = Roots(*(part[going] for part in now))
            alive, excess = alive[going], excess[going]
            if not len(alive):
                break
        last = now
        Y, Z = step(now.root, now.inverse_root, excess)
    return found


def _settled(now: Tensor, last: Tensor, tolerance: float) -> Tensor:
    # Below 1/2 the residual at least halves in exact arithmetic. Above, a few small eigenvalues
    # may hold it level for many iterations, up to rounding.
    at_the_floor = (last < 0.5) & (now > last / 2)
    return (now <= tolerance) | at_the_floor | ~(now <= 1.001 * last)


def _better(now: Roots, last: Roots) -> Roots:
    better = now.residual < last.residual
    Y, Z = (
        torch.where(better[:, None, None], new, old)
        for new, old in zip(now[:2], last[:2], strict=True)
    )
    return Roots(Y, Z, torch.where(better, now.residual, last.residual), now.iterations)


def _excess(Y: Tensor, Z: Tensor) -> Tensor:
    """``Z Y - I``."""
    product = Z @ Y
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    return product


def _norm(M: Tensor) -> Tensor:
    """Frobenius norm ``[..]``, safe from overflow of the squares."""
    largest = M.abs().amax((-2, -1))
    return largest * (M / largest[:, None, None]).square().sum((-2, -1)).sqrt()


def _one(M: Tensor) -> Tensor:
    return M.new_ones(len(M))


def _scaled(found: Roots, c: Tensor) -> Roots:
    """Undo the division by ``c``; rounding leaves the iterates not quite symmetric."""
    half = c.sqrt()[:, None, None]
    Y, Z = found.root, found.inverse_root
    root, inverse_root = (Y + Y.mT).mul_(half / 2), (Z + Z.mT).div_(2 * half)
    return found._replace(root=root, inverse_root=inverse_root)


def _each(
    A: Tensor,
    compute: Callable[[Tensor], Roots],
    tolerance: float | None = None,
    iterations: int | None = None,
) -> Roots:
    """``compute`` on the flat stack in full precision, with what is not finite left out."""
    _check(A, tolerance, iterations)
    batch, d = A.shape[:-2], A.shape[-1]
    half = A.dtype in (torch.float16, torch.bfloat16)
    stack = A.to(torch.float32 if half else A.dtype).reshape(math.prod(batch), d, d)
    bad = ~linalg.finite(stack)
    some_bad = bool(bad.any())
    if some_bad:
        eye = torch.eye(d, dtype=stack.dtype, device=A.device)
        stack = torch.where(bad[:, None, None], eye, stack)
    with torch.no_grad(), torch.autocast(A.device.type, enabled=False), _full_precision():
        Y, Z, residual, taken = compute(stack)
    residual = residual.masked_fill(residual.isnan(), math.inf)
    if some_bad:
        Y, Z = (M.masked_fill(bad[:, None, None], math.nan) for M in (Y, Z))
        residual, taken = residual.masked_fill(bad, math.inf), taken.masked_fill(bad, 0)
    Y, Z = (M.to(A.dtype).view(A.shape) for M in (Y, Z))
    return Roots(Y, Z, residual.view(batch), taken.view(batch))


def _check(A: Tensor, tolerance: float | None, iterations: int | None) -> None:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or not A.shape[-1] or not A.is_floating_point():
        raise ValueError(
            "roots need floating-point square matrices [.., d, d], "
            f"got {tuple(A.shape)} of {A.dtype}"
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products in float32: TF32 or bfloat16 would leave three digits of the roots."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        legacy = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
        return
    # One backend at a time: whatever interface the user set them through, it reads the same after.
    matmuls = [getattr(torch.backends, backend).matmul for backend in ("cuda", "mkldnn")]
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, setting in zip(matmuls, before, strict=True):
            matmul.fp32_precision = setting
