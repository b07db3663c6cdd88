"""Whitening matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad import linalg
from natgrad.whiten.bases import BASES, whitening
from tests.networks import normal, relative


@given(
    k=st.integers(1, 6), rank=st.integers(1, 6), basis=st.sampled_from(BASES[:3]),
    batch=st.sampled_from([(), (3,)]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_basis_is_a_root_of_the_same_inverse(k, rank, basis, batch, seed):
    x = normal(*batch, rank, k, seed=seed)
    Sigma, eye = x.mT @ x, torch.eye(k, dtype=x.dtype)
    P, P_inv = whitening(Sigma, 1e-2, basis)
    assert relative(P.mT @ P @ (Sigma + 1e-2 * eye), eye.expand_as(Sigma)) < 1e-9
    assert relative(P @ P_inv, eye.expand_as(Sigma)) < 1e-10


def test_zca_is_symmetric_cholesky_is_triangular_pca_has_orthogonal_rows():
    x = normal(9, 4)
    Sigma = x.mT @ x
    P = {basis: whitening(Sigma, 1e-3, basis)[0] for basis in BASES}
    assert relative(P["zca"].mT, P["zca"]) < 1e-12
    L = torch.linalg.cholesky(linalg.add_ridge(Sigma, 1e-3))
    assert relative(P["cholesky"], torch.linalg.inv(L)) < 1e-11
    gram = P["pca"] @ P["pca"].mT
    assert relative(gram.diagonal().diag(), gram) < 1e-12
    assert relative(P["diagonal"][0], (Sigma.diagonal() + 1e-3) ** -0.5) < 1e-12


@pytest.mark.parametrize("basis", BASES[:3])
def test_what_can_not_be_decomposed_is_not_finite(basis):
    P, _ = whitening(torch.full((3, 3), torch.nan, dtype=torch.float64), 1e-3, basis)
    assert not P.isfinite().all()


def test_the_triangle_is_that_of_an_orthogonal_reduction(monkeypatch):
    """By Cholesky, and by the way that is left where the factorisation fails."""
    x = normal(2, 9, 200)
    Sigma = x.mT @ x / 9
    found = whitening(Sigma, 1e-2, "cholesky")
    failed = torch.zeros(2, dtype=torch.bool)
    monkeypatch.setattr(linalg, "lower_roots", lambda M: (M, M, failed))
    for one, other in zip(found, whitening(Sigma, 1e-2, "cholesky"), strict=True):
        assert relative(one, other) < 1e-10
        assert not one.triu(1).any()


def test_pivots_that_are_rounding_count_as_failures():
    x = normal(2, 5)
    L, inverse, succeeded = linalg.lower_roots(torch.stack([x.mT @ x, torch.eye(5).double()]))
    assert succeeded.tolist() == [False, True]
    assert torch.equal(L[1], inverse[1])
    assert linalg.lower_roots(torch.full((3, 3), torch.nan).double())[2].item() is False


@pytest.mark.parametrize("basis", BASES)
def test_constant_rows_leave_eps_alone(basis):
    P, P_inv = whitening(torch.zeros(3, 3, dtype=torch.float64), 1e-2, basis)
    assert (P.mT @ P if basis != "diagonal" else P**2).max() == pytest.approx(100)
    assert P_inv.isfinite().all()
