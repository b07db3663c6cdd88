"""Eigenbases by a step of orthogonal iteration from the last one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, EigenCorrected, TwoFactor
from natgrad.damping import Constant
from natgrad.decompose import Factor, decompose
from natgrad.linalg import Eigen
from natgrad.sample import Sample
from natgrad.split import Split, dense
from tests.measured import block, commit, damped_solve, refresh
from tests.networks import normal, relative

D = 12


def psd(decay: float = 0.6, d: int = D, seed: int = 0) -> Tensor:
    """Eigenvalues ``decay^k``."""
    Q = torch.linalg.qr(normal(d, d, seed=seed)).Q
    return (Q * decay ** torch.arange(d, dtype=Q.dtype)) @ Q.mT


def off_diagonal(M: Tensor, U: Tensor) -> float:
    R = U.mT @ M @ U
    return float((R - torch.diag(R.diagonal())).norm() / R.norm())


def residuals(M: Tensor, U: Tensor, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        eigen, ok = linalg.eigh_from(M, U)
        assert bool(ok)
        U = eigen.vectors
        found.append(off_diagonal(M, U))
    return found


@pytest.mark.parametrize("decay", [0.4, 0.6, 0.8])
def test_with_a_matrix_that_stays_the_residual_falls_geometrically(decay):
    start = torch.linalg.qr(normal(D, D, seed=3)).Q
    found = residuals(psd(decay), start, 40)
    rates = [after / before for before, after in pairwise(found[10:16])]
    assert max(rates) < decay**0.8  # neighbours' ratio, with the mixing of the first steps
    assert found[-1] < max(1e-12, 50 * decay**40)


def test_equal_eigenvalues_leave_the_basis_within_their_space_as_it_is():
    start = torch.linalg.qr(normal(D, D, seed=3)).Q
    eigen, _ = linalg.eigh_from(2 * torch.eye(D, dtype=start.dtype), start)
    assert relative((start.mT @ eigen.vectors).abs().sum(0), torch.ones(D)) < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_the_trace_is_kept_and_the_basis_is_orthogonal_from_any_start(seed):
    start, M = torch.linalg.qr(normal(D, D, seed=seed)).Q, psd(seed=seed + 7)
    eigen, _ = linalg.eigh_from(M, start)
    assert float(eigen.values.sum()) == pytest.approx(float(M.trace()), rel=1e-13)
    assert relative(eigen.vectors.mT @ eigen.vectors, torch.eye(D)) < 1e-13
    assert bool((eigen.values.diff() >= 0).all())
    assert off_diagonal(M, eigen.vectors) > 1e-3  # it is no eigenbasis


@pytest.mark.parametrize("rank", [D, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_from_the_eigenbasis_comes_the_eigendecomposition(rank, dtype):
    X = normal(D, rank)
    M = (X @ X.mT).to(dtype)
    fresh, _ = linalg.eigh(M)
    warm, _ = linalg.eigh_from(M, fresh.vectors)
    tight = 1e-10 if dtype == torch.float64 else 1e-5
    assert relative(warm.values, fresh.values) < tight
    back = warm.vectors * warm.values @ warm.vectors.mT
    assert relative(back, M) < tight
    assert relative(warm.vectors.mT @ warm.vectors, torch.eye(D)) < tight


def test_of_a_matrix_that_has_moved_the_last_basis_is_improved():
    M, other = psd(), psd() + 0.02 * psd(seed=5)
    U = linalg.eigh(M)[0].vectors
    found = residuals(other, U, 3)
    assert off_diagonal(other, U) > found[0] > found[1] > found[2] > 1e-6


def test_a_zero_matrix_has_a_basis_too():
    eigen, ok = linalg.eigh_from(torch.zeros(D, D), torch.eye(D))
    assert bool(ok)
    assert float(eigen.values.abs().max()) == 0
    assert relative(eigen.vectors.mT @ eigen.vectors, torch.eye(D)) < 1e-6


@pytest.mark.parametrize("split", [None, Split.of(D, 5)])
def test_what_is_not_finite_fails_alone(split):
    def factor(seed: int) -> Factor:
        M = psd(seed=seed)
        if split is not None:
            M = split.matrix(split.moment(M, M))
        [fresh] = decompose([Factor(M)])
        return Factor(M, last=fresh.vectors)

    factors = [factor(seed) for seed in range(3)]
    last = factors[1].matrix if split is None else factors[1].matrix.stacks[-1]
    last[..., 0, 1] = float("nan")
    found = decompose(factors)
    assert found[1] is None
    for k in (0, 2):
        M, U = dense(factors[k].matrix), dense(found[k].vectors)
        assert relative((U * found[k].values) @ U.mT, M) < 1e-10


def sample(seed: int) -> Sample:
    return Sample(normal(30, 2, 7, seed=seed), normal(2, 30, 2, 5, seed=seed + 1))


def moved(of: type, eigen: str, widest: int | None):
    """A block that was decomposed once and has seen another batch since."""
    made = block(of, sample(0), Constant(0.1), decay=0.9, eigen=eigen, widest=widest)
    made.observe(sample(9))
    commit(made)
    return made


def basis_of(made) -> TwoFactor:
    return made.basis if isinstance(made, EigenCorrected) else made


every_block = pytest.mark.parametrize("of", [KFAC, TKFAC, EKFAC, TEKFAC])
every_width = pytest.mark.parametrize("widest", [None, 3])


@every_block
@every_width
def test_blocks_step_from_their_last_basis_and_the_first_is_fresh(of, widest):
    fresh, warm = (moved(of, eigen, widest) for eigen in ("fresh", "warm"))
    for one, other in zip(basis_of(fresh).eigen(), basis_of(warm).eigen(), strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(dense(one.vectors), dense(other.vectors))
    wanted = basis_of(warm).factors()
    last = [eigen.vectors.clone() for eigen in basis_of(warm).eigen()]
    refresh(warm)
    for factor, U, now in zip(wanted.values(), last, basis_of(warm).eigen(), strict=True):
        if widest is None:
            expected = linalg.eigh_from(factor.matrix, U)[0]
            assert relative(now.values, expected.values) < 1e-12
        assert off_diagonal(dense(factor.matrix), dense(now.vectors)) > 1e-4
        trace = float(dense(factor.matrix).trace())
        assert float(now.values.sum()) == pytest.approx(trace, rel=1e-12)
    refresh(fresh)
    assert relative(fresh.dense(), warm.dense()) > 1e-4 or not isinstance(warm, EigenCorrected)


@every_width
@pytest.mark.parametrize("of", [EKFAC, TEKFAC])
def test_eigenvalue_correction_holds_in_the_basis_that_comes_out(of, widest):
    made = moved(of, "warm", widest)
    before = made.dense()
    refresh(made)
    A, G = made.basis.eigen()
    Q = linalg.kron(dense(G.vectors), dense(A.vectors))
    expected = Q @ torch.diag((Q.mT @ before @ Q).diagonal()) @ Q.mT
    assert relative(made.dense(), expected) < 1e-12  # C18 carries the scale over
    M = normal(5, 7)
    assert relative(made.solve(M), damped_solve(made.dense(), M, 0.1)) < 1e-10


@pytest.mark.parametrize("of", [KFAC, TKFAC])
def test_repeated_on_statistics_that_stay_the_solution_becomes_the_fresh_one(of):
    fresh, warm = (moved(of, eigen, None) for eigen in ("fresh", "warm"))
    refresh(fresh)
    M, errors = normal(5, 7), []
    for _ in range(200):
        refresh(warm)
        errors.append(relative(warm.solve(M), fresh.solve(M)))
    assert errors[0] > 1e-4
    assert errors[-1] < 1e-2 * errors[0]


def test_a_factor_that_is_inverted_asks_for_no_basis():
    made = block(KFAC, sample(0), 0.1, eigen="warm")
    assert all(factor.last is None for factor in made.factors().values())
    assert isinstance(decompose([Factor(psd(), last=torch.eye(D, dtype=torch.float64))])[0], Eigen)
