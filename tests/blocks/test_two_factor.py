"""What K-FAC and TKFAC have in common: one Kronecker product, groups, diagonal inputs, rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import KFAC, TKFAC, TwoFactor
from natgrad.damping import Constant, Factored
from natgrad.sample import OneHot, Sample
from tests.measured import block, commit, damped_solve, refresh
from tests.networks import normal, relative

both = pytest.mark.parametrize("cls", [KFAC, TKFAC])
DAMPINGS = [0.1, Factored(0.1), Factored(0.1, balanced=False), Constant(0.1)]
every_damping = pytest.mark.parametrize("damping", DAMPINGS, ids=str)


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


def factored(made: TwoFactor, damping) -> Tensor:
    """The damped block written out."""
    A, G = made.matrices()
    if isinstance(damping, Constant):
        return linalg.add_ridge(linalg.kron(G, A), damping.value)
    balanced = damping.balanced if isinstance(damping, Factored) else type(made) is KFAC
    pi = float((A.trace() / len(A) / (G.trace() / len(G))).sqrt()) if balanced else 1.0
    root = 0.1**0.5
    return linalg.kron(linalg.add_ridge(G, root / pi), linalg.add_ridge(A, pi * root))


@both
@every_damping
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_solutions_are_those_of_the_damped_product_for_any_leading_dimensions(
    cls, damping, leading
):
    made = block(cls, sample(), damping)
    M = normal(*leading, 3, 4, seed=3)
    F = factored(made, damping)
    expected = torch.linalg.solve(F, M.flatten(-2).unsqueeze(-1)).reshape(M.shape)
    assert relative(made.solve(M), expected) < 1e-11


@both
@pytest.mark.parametrize("leading", [(), (5,)])
def test_products_trace_norm_and_eigenvalues_are_those_of_the_matrix(cls, leading):
    made = block(cls, sample())
    F, M = made.dense(), normal(*leading, 3, 4)
    assert relative(made.product(M).flatten(-2), M.flatten(-2) @ F) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-12)
    assert float(made.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-12)
    assert relative(made.eigenvalues().sort().values, torch.linalg.eigvalsh(F)) < 1e-12
    assert made.dim == len(F) == 12


@both
@every_damping
@pytest.mark.parametrize(("n", "t"), [(1, 1), (40, 2)], ids=["few rows", "many rows"])
def test_rows_are_solved_as_their_gradient_is(cls, damping, n, t):
    made, rows = block(cls, sample(), damping), sample(n=n, t=t, c=1, seed=7)
    assert relative(made.solve_rows(rows), made.solve(rows.gradient_sum())) < 1e-12


@both
@every_damping
def test_groups_are_blocks_of_their_own(cls, damping):
    each = [sample(seed=0), sample(seed=5)]
    a, g = torch.stack([s.a for s in each]), torch.stack([s.g for s in each])
    made = cls((3, 4), groups=(2,), damping=damping, dtype=torch.float64)
    made.observe(Sample(a, g))
    commit(made)
    refresh(made)
    alone = [block(cls, s, damping) for s in each]
    M = normal(2, 3, 4, seed=3)
    assert made.dim == 24
    assert relative(made.dense(), torch.stack([one.dense() for one in alone])) < 1e-12
    solved = torch.stack([one.solve(m) for one, m in zip(alone, M, strict=True)])
    assert relative(made.product(M)[1], alone[1].product(M[1])) < 1e-12
    if isinstance(damping, Constant) or cls is TKFAC or not getattr(damping, "balanced", True):
        assert relative(made.solve(M), solved) < 1e-11
    assert relative(made.solve(M), solved) < 1e-11
    assert float(made.trace()) == pytest.approx(sum(float(one.trace()) for one in alone))
    expected = torch.cat([one.eigenvalues() for one in alone]).sort().values
    assert relative(made.eigenvalues().sort().values, expected) < 1e-12


def one_hot(seed: int = 0) -> tuple[Sample, Sample]:
    """The same sample with indices, some of them masked, and with unit vectors written out."""
    indices = torch.randint(-1, 5, (6, 2), generator=torch.Generator().manual_seed(seed))
    rows, g = OneHot(indices, 5), normal(2, 6, 2, 3, seed=seed)
    return Sample(rows, g), Sample(rows.dense(torch.float64), g)


@both
@every_damping
def test_unit_vectors_need_no_dense_input_factor(cls, damping):
    indices, dense = one_hot()
    made = cls((3, 5), diagonal_input=True, damping=damping, dtype=torch.float64)
    made.observe(indices)
    commit(made)
    refresh(made)
    expected = block(cls, dense, damping)
    M = normal(3, 5)
    assert made.A.value.shape == (5,)
    assert relative(made.dense(), expected.dense()) < 1e-12
    assert relative(made.product(M), expected.product(M)) < 1e-12
    assert relative(made.solve(M), expected.solve(M)) < 1e-11
    assert relative(made.solve_rows(indices), expected.solve(dense.gradient_sum())) < 1e-11
    assert float(made.trace()) == pytest.approx(float(expected.trace()), rel=1e-12)
    assert float(made.squared_norm()) == pytest.approx(float(expected.squared_norm()), rel=1e-12)


@both
def test_undamped_in_the_eigenbases_the_solution_is_the_pseudo_inverses(cls):
    few = sample(n=2, t=1, c=1)
    made = block(cls, few, Constant(0.0))
    M = normal(3, 4)
    expected = torch.linalg.pinv(made.dense(), hermitian=True, rtol=1e-12) @ M.flatten()
    assert relative(made.solve(M).flatten(), expected) < 1e-10
    assert relative(made.product(made.solve(made.product(M))), made.product(M)) < 1e-10


class TwiceKFAC(KFAC):
    """A two-factor block of one's own."""

    def matrices(self) -> tuple[Tensor, Tensor]:
        A, G = super().matrices()
        return 2 * A, G


def test_a_block_of_ones_own_says_its_matrices_and_inherits_the_rest():
    made, plain = block(TwiceKFAC, sample(), Constant(0.1)), block(KFAC, sample(), Constant(0.1))
    assert relative(made.dense(), 2 * plain.dense()) < 1e-14
    M = normal(3, 4)
    assert relative(made.solve(M), damped_solve(2 * plain.dense(), M, 0.1)) < 1e-11
    assert float(made.trace()) == pytest.approx(2 * float(plain.trace()))
