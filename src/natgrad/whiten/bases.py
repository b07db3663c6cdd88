"""Whitening matrices: ``P`` with ``P^T P = (Sigma + eps I)^-1``, each with its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad import linalg

__all__ = ["BASES", "whitening"]

BASES = ("pca", "zca", "cholesky", "diagonal")


def whitening(Sigma: Tensor, eps: float, basis: str) -> tuple[Tensor, Tensor]:
    """``P`` and ``P^-1`` for covariances ``Sigma [.., k, k]`` (MATH 5.1, V:D1, V:D2).

    With ``Sigma = E diag(l) E^T``: ``pca`` is ``diag(l + eps)^-1/2 E^T`` (Desjardins et al. 2015,
    equation 7). The others are rotations of it: ``zca`` is ``E diag(l + eps)^-1/2 E^T``, and
    ``cholesky`` ``L^-1`` with ``L L^T = Sigma + eps I``, ``2 k^3 / 3`` flop in place of some
    ``9 k^3``. ``diagonal`` scales each feature alone, ``1 / sqrt(Sigma_kk + eps)``, as a row
    ``[.., 1, k]``.

    Returns:
        Both in the dtype of ``Sigma``; not finite where the decomposition failed.
    """
    if basis == "diagonal":
        root = (Sigma.diagonal(dim1=-2, dim2=-1) + eps).sqrt().unsqueeze(-2)
        return 1 / root, root
    if basis == "cholesky":
        L, L_inv, succeeded = linalg.lower_roots(linalg.add_ridge(Sigma, eps))
        if bool(succeeded.all()):
            return L_inv, L
    (l, E), succeeded = linalg.eigh(Sigma)
    assert isinstance(E, Tensor)
    root = (l + eps).sqrt()
    root = root.where(succeeded.unsqueeze(-1), torch.nan)
    P, P_inv = E.mT / root.unsqueeze(-1), E * root.unsqueeze(-2)
    if basis == "pca":
        return P, P_inv
    if basis == "zca":
        return E @ P, P_inv @ E.mT
    O = _orthogonal_factor(P_inv.mT)
    return (O.mT @ P).tril(), (P_inv @ O).tril()


def _orthogonal_factor(M: Tensor) -> Tensor:
    """``O`` of ``M = O R`` with ``R`` upper triangular, its diagonal positive.

    For ``M^T M = Sigma + eps I`` the triangle ``R^T`` is the Cholesky factor, also where ``Sigma``
    is singular and ``eps`` too small for a Cholesky factorisation of the sum.
    """
    packed, tau = torch.geqrf(M.nan_to_num())
    signs = packed.diagonal(dim1=-2, dim2=-1).sign()
    return torch.orgqr(packed, tau) * signs.unsqueeze(-2)
