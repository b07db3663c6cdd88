"""Functions of stacked positive semi-definite matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natgrad import linalg
from natgrad.damping.fixed import factored_ridges
from tests.networks import normal, relative

sizes = st.integers(1, 5)
batches = st.sampled_from([(), (1,), (3,), (2, 3)])


def psd(*shape: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """Positive semi-definite ``[*batch, d, d]`` of the given rank."""
    d = shape[-1]
    X = normal(*shape, d if rank is None else rank, seed=seed)
    return X @ X.mT + (0.1 * torch.eye(d, dtype=X.dtype) if rank is None else 0)


def kron_by_entries(G: Tensor, A: Tensor) -> Tensor:
    flat = [torch.kron(g, a) for g, a in zip(G.flatten(0, -3), A.flatten(0, -3), strict=True)]
    return torch.stack(flat)


@given(batch=batches, m=sizes, d=sizes, seed=st.integers(0, 99))
def test_kron_is_the_kronecker_product_of_every_pair_of_the_stack(batch, m, d, seed):
    G, A = psd(*batch, m, seed=seed), psd(*batch, d, seed=seed + 1)
    expected = kron_by_entries(G[None], A[None]).view(*batch, m * d, m * d)
    assert torch.equal(linalg.kron(G, A), expected)


@given(batch=batches, m=sizes, d=sizes, seed=st.integers(0, 99))
def test_kron_solve_undoes_the_kronecker_product(batch, m, d, seed):
    G, A = psd(*batch, m, seed=seed), psd(*batch, d, seed=seed + 1)
    M = normal(*batch, m, d, seed=seed + 2)
    U = linalg.kron_solve(torch.linalg.inv(G), torch.linalg.inv(A), M)
    back = linalg.kron(G, A) @ U.flatten(-2).unsqueeze(-1)
    assert torch.allclose(back.view(M.shape), M, rtol=1e-8, atol=1e-8)


@given(batch=batches, m=sizes, d=sizes, seed=st.integers(0, 99))
def test_kron_eigen_solve_undoes_the_damped_kronecker_product(batch, m, d, seed):
    G, A = psd(*batch, m, seed=seed), psd(*batch, d, seed=seed + 1)
    M = normal(*batch, m, d, seed=seed + 2)
    U = linalg.kron_eigen_solve(linalg.eigh(G)[0], linalg.eigh(A)[0], M, 0.3)
    damped = linalg.add_ridge(linalg.kron(G, A), 0.3)
    back = damped @ U.flatten(-2).unsqueeze(-1)
    assert torch.allclose(back.view(M.shape), M, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_without_damping_a_singular_factor_is_solved_by_the_pseudo_inverse(seed):
    G, A = psd(4, rank=2, seed=seed), psd(5, rank=3, seed=seed + 50)
    M = normal(4, 5, seed=seed)
    U = linalg.kron_eigen_solve(linalg.eigh(G)[0], linalg.eigh(A)[0], M, 0.0)
    expected = torch.linalg.pinv(linalg.kron(G, A), rtol=1e-12, hermitian=True) @ M.flatten()
    assert relative(U.flatten(), expected) < 1e-8


def test_without_damping_exactly_zero_eigenvalues_are_left_out():
    G, A = torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([4.0, 0.0, 1.0]))
    eigen = [linalg.Eigen(M.diagonal(), torch.eye(len(M))) for M in (G, A)]
    U = linalg.kron_eigen_solve(*eigen, torch.ones(2, 3), 0.0)
    assert torch.equal(U, torch.tensor([[1 / 8, 0, 1 / 2], [0, 0, 0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_damping_no_direction_is_left_out_however_flat(dtype):
    d = 100
    l = torch.zeros(d, dtype=dtype)
    l[-1] = 1e4
    A, G = linalg.Eigen(l, torch.eye(d, dtype=dtype)), linalg.Eigen(l, torch.eye(d, dtype=dtype))
    U = linalg.kron_eigen_solve(G, A, torch.ones(d, d, dtype=dtype), 1e-3)
    assert float(U[0, 0]) == pytest.approx(1e3, rel=1e-4)


@given(batch=batches, d=sizes, rank=sizes, seed=st.integers(0, 99))
def test_eigh_reassembles_the_matrix_with_no_negative_eigenvalue(batch, d, rank, seed):
    M = psd(*batch, d, rank=min(rank, d), seed=seed)
    (values, vectors), succeeded = linalg.eigh(M)
    assert succeeded.shape == batch
    assert bool(succeeded.all())
    assert bool((values >= 0).all())
    assert bool((values.diff() >= 0).all())
    eye = torch.eye(d, dtype=M.dtype)
    assert torch.allclose(vectors.mT @ vectors, eye.expand(M.shape), atol=1e-12)
    assert torch.allclose(vectors @ torch.diag_embed(values) @ vectors.mT, M, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_eigh_that_fails_in_float32_is_tried_again_in_float64(monkeypatch, batch):
    true_eigh = torch.linalg.eigh

    def fails_in_float32(M: Tensor):
        if M.dtype == torch.float32:
            raise torch.linalg.LinAlgError("on purpose")
        return true_eigh(M)

    M = psd(*batch, 4).float()
    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    (values, vectors), succeeded = linalg.eigh(M)
    assert succeeded.shape == batch
    assert bool(succeeded.all())
    assert values.dtype == vectors.dtype == torch.float32
    assert torch.allclose(vectors @ torch.diag_embed(values) @ vectors.mT, M, atol=1e-4)


def test_eigh_names_the_matrix_of_a_stack_that_fails_in_float64_too(monkeypatch):
    true_eigh = torch.linalg.eigh

    def refuses_one(M: Tensor):
        if M.ndim > 2 or float(M.trace()) > 1000:
            raise torch.linalg.LinAlgError("on purpose")
        return true_eigh(M)

    M = psd(3, 4)
    M[1] *= 1e6
    monkeypatch.setattr(torch.linalg, "eigh", refuses_one)
    (values, vectors), succeeded = linalg.eigh(M)
    assert succeeded.tolist() == [True, False, True]
    back = vectors @ torch.diag_embed(values) @ vectors.mT
    assert torch.allclose(back[::2], M[::2], atol=1e-10)


@given(batch=batches, d=sizes, seed=st.integers(0, 99))
def test_inverse_times_the_matrix_is_the_identity(batch, d, seed):
    M = psd(*batch, d, seed=seed)
    inverse, succeeded = linalg.inverse(M)
    assert succeeded.shape == batch
    assert bool(succeeded.all())
    assert torch.allclose(inverse @ M, torch.eye(d, dtype=M.dtype).expand(M.shape), atol=1e-9)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_inverse_says_which_matrix_is_not_positive_definite(batch):
    M = psd(*batch, 3).float()
    bad = torch.zeros(batch, dtype=torch.bool)
    bad.view(-1)[-1] = True
    M.view(-1, 3, 3)[-1] = -torch.eye(3)
    inverse, succeeded = linalg.inverse(M)
    assert torch.equal(succeeded, ~bad)
    good = M[~bad] @ inverse[~bad]
    assert torch.allclose(good, torch.eye(3).expand(good.shape), atol=1e-4)


@pytest.mark.parametrize("stack", [False, True])
def test_inverse_is_tried_again_in_float64(stack):
    d = 60  # positive definite, but not within float32's rounding
    Q = torch.linalg.qr(normal(d, d))[0]
    M = (Q @ torch.diag(torch.logspace(0, -9, d, dtype=torch.float64)) @ Q.mT).float()
    exact = linalg.symmetrize(M.double())
    smallest = float(torch.linalg.eigvalsh(exact)[0])
    M = linalg.add_ridge(exact, 1e-9 - min(smallest, 0.0)).float()
    single = torch.linalg.cholesky_ex(M).info
    double = torch.linalg.cholesky_ex(M.double()).info
    if int(single) == 0 or int(double) != 0:
        pytest.skip("this LAPACK rounds otherwise")
    stacked = torch.stack([torch.eye(d), M]) if stack else M
    inverse, succeeded = linalg.inverse(stacked)
    assert bool(succeeded.all())
    assert inverse.dtype == torch.float32
    found = inverse[1] if stack else inverse
    assert relative(found.double(), torch.linalg.inv(M.double())) < 1e-3


@given(batch=batches, d=sizes, seed=st.integers(0, 99))
def test_add_ridge_has_one_ridge_for_each_matrix_and_leaves_its_argument(batch, d, seed):
    M, ridge = psd(*batch, d, seed=seed), normal(*batch, seed=seed)
    before = M.clone()
    expected = M + ridge[..., None, None] * torch.eye(d, dtype=M.dtype)
    assert torch.allclose(linalg.add_ridge(M, ridge), expected)
    assert torch.equal(M, before)


@given(batch=batches, m=sizes, d=sizes, seed=st.integers(0, 99))
def test_factored_ridges_multiply_to_the_damping_in_the_ratio_of_mean_eigenvalues(
    batch, m, d, seed
):
    A, G = psd(*batch, d, seed=seed), psd(*batch, m, seed=seed + 1)
    means = linalg.mean_diagonal(A), linalg.mean_diagonal(G)
    ridge_A, ridge_G = factored_ridges(*means, 0.09)
    assert torch.allclose(ridge_A * ridge_G, torch.full(batch, 0.09, dtype=A.dtype))
    ratio = linalg.mean_diagonal(A) / linalg.mean_diagonal(G)
    assert torch.allclose(ridge_A / ridge_G, ratio)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_pi_is_one_where_a_trace_is_of_no_use(bad, which):
    means = [torch.tensor(1.0), torch.tensor(1.0)]
    means[which] = means[which] * bad
    ridges = factored_ridges(*means, 0.04)
    assert [float(r) for r in ridges] == pytest.approx([0.2, 0.2])


def test_woodbury_needs_damping():
    with pytest.raises(ValueError, match="needs damping > 0, got 0"):
        linalg.woodbury_solve(normal(4, 2), 0.0, normal(4, 1))


def test_dtype_is_kept():
    M = psd(3).float()
    results = [
        *linalg.eigh(M)[0], linalg.inverse(M)[0], linalg.kron(M, M), linalg.add_ridge(M, 1.0),
        *factored_ridges(linalg.trace(M), linalg.trace(M), 0.1), linalg.symmetrize(M),
        linalg.mean_diagonal(M),
    ]  # fmt: skip
    assert {result.dtype for result in results} == {torch.float32}
