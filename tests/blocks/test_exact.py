"""The exact block: its matrix, its solutions, its groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.blocks import Exact
from natgrad.damping import Constant
from natgrad.sample import OneHot, Sample
from tests import byhand
from tests.measured import block, commit, damped_solve, refresh
from tests.networks import normal, relative


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


@given(n=st.integers(1, 4), t=st.integers(1, 4), c=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_the_mean_of_outer_products_of_gradients(n, t, c, seed):
    found = sample(n=n, t=t, c=c, seed=seed)
    assert relative(block(Exact, found).dense(), byhand.exact(found.a, found.g)) < 1e-12


@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_solutions_are_those_of_the_damped_matrix(damping):
    made = block(Exact, sample(), damping)
    M = normal(3, 4)
    assert relative(made.solve(M), damped_solve(made.dense(), M, damping)) < 1e-11
    stacked = normal(5, 3, 4, seed=2)
    expected = torch.stack([made.solve(m) for m in stacked])
    assert relative(made.solve(stacked), expected) < 1e-12


def test_undamped_the_solution_is_the_pseudo_inverses():
    made = block(Exact, sample(n=3, c=1), Constant(0.0))
    M = normal(3, 4)
    expected = torch.linalg.pinv(made.dense(), hermitian=True, rtol=1e-12) @ M.flatten()
    assert int(torch.linalg.matrix_rank(made.dense())) == 3
    assert relative(made.solve(M).flatten(), expected) < 1e-10


def test_products_trace_norm_and_eigenvalues_are_those_of_the_matrix():
    made = block(Exact, sample())
    F, M = made.dense(), normal(5, 3, 4)
    assert relative(made.product(M).flatten(-2), M.flatten(-2) @ F) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-13)
    assert float(made.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-13)
    assert relative(made.eigenvalues(), torch.linalg.eigvalsh(F)) < 1e-12


def test_steps_are_averaged_by_their_examples():
    first, second = sample(n=2, seed=0), sample(n=6, seed=5)
    F, G = (block(Exact, s).dense() for s in (first, second))
    expected = (0.5 * 2 * F + 6 * G) / (0.5 * 2 + 6)
    assert relative(block(Exact, [first, second], decay=0.5).dense(), expected) < 1e-12


def test_many_small_groups_are_blocks_of_their_own():
    a, g = normal(7, 6, 3, 2), normal(7, 2, 6, 3, 1, seed=1)  # scale and shift of seven units
    made = Exact((1, 2), groups=(7,), damping=0.1, dtype=torch.float64)
    made.observe(Sample(a, g))
    commit(made)
    refresh(made)
    expected = torch.stack([byhand.exact(a[q], g[q]) for q in range(7)])
    assert relative(made.dense(), expected) < 1e-12
    M = normal(7, 1, 2)
    solved = torch.stack([damped_solve(expected[q], M[q], 0.1) for q in range(7)])
    assert relative(made.solve(M), solved) < 1e-11
    assert relative(made.product(M)[3], (expected[3] @ M[3].flatten()).view(1, 2)) < 1e-12
    whole = torch.block_diag(*expected)
    assert relative(made.eigenvalues().sort().values, torch.linalg.eigvalsh(whole)) < 1e-10
    assert made.dim == 14


def test_unit_vectors_are_written_out():
    indices = torch.tensor([[0, 2, 2], [1, -1, 0]])
    rows, g = OneHot(indices, 3), normal(2, 2, 3, 4)
    made = Exact((4, 3), diagonal_input=True, damping=0.1, dtype=torch.float64)
    made.observe(Sample(rows, g))
    commit(made)
    assert relative(made.dense(), byhand.exact(rows.dense(g.dtype), g)) < 1e-12


def test_state_holds_all_that_solving_needs():
    made, other = block(Exact, sample()), Exact((3, 4), damping=0.1, dtype=torch.float64)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.solve(normal(3, 4)), made.solve(normal(3, 4)))
