"""The diagonal block: squares of true per-example gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad import sample as sample_module
from natgrad.blocks import Diagonal, Exact
from natgrad.damping import Constant
from natgrad.sample import OneHot, Sample
from tests import byhand
from tests.measured import block, commit, refresh
from tests.networks import normal, relative


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


@given(n=st.integers(1, 4), t=st.integers(1, 4), c=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_the_diagonal_of_the_exact_block(n, t, c, seed):
    found = sample(n=n, t=t, c=c, seed=seed)
    F = byhand.exact(found.a, found.g)
    made = block(Diagonal, found)
    assert relative(made.dense(), torch.diag(F.diagonal())) < 1e-12
    assert relative(made.dense().diagonal(), block(Exact, found).dense().diagonal()) < 1e-12


@pytest.mark.parametrize("limit", [1, 200, 2**28])
def test_gradients_formed_for_some_examples_at_a_time_give_the_same(monkeypatch, limit):
    monkeypatch.setattr(sample_module, "CHUNK_BYTES", limit)
    found = sample(n=7, t=3)
    F = byhand.exact(found.a, found.g)
    assert relative(block(Diagonal, found).dense().diagonal(), F.diagonal()) < 1e-12
    assert relative(block(Exact, found).dense(), F) < 1e-12
    most = max(len(J[0]) for J in found.gradients())
    assert most == (7 if limit == 2**28 else 1)


def test_products_solutions_and_spectrum_are_those_of_the_matrix():
    made = block(Diagonal, sample())
    F, M = made.dense(), normal(5, 3, 4)
    assert relative(made.product(M).flatten(-2), M.flatten(-2) @ F) < 1e-14
    expected = M.flatten(-2) @ torch.linalg.inv(F + 0.1 * torch.eye(12, dtype=F.dtype))
    assert relative(made.solve(M).flatten(-2), expected) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-13)
    assert float(made.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-13)
    assert torch.equal(made.eigenvalues(), F.diagonal())


def test_undamped_entries_that_are_never_moved_stay():
    found = sample()
    found.a[..., 1] = 0
    made = block(Diagonal, found, Constant(0.0))
    M = normal(3, 4)
    assert float(made.solve(M)[:, 1].abs().max()) == 0
    assert relative(made.product(made.solve(M))[:, [0, 2, 3]], M[:, [0, 2, 3]]) < 1e-12


def test_a_number_is_added_to_the_diagonal():
    M = normal(3, 4)
    one, other = (block(Diagonal, sample(), d).solve(M) for d in (0.1, Constant(0.1)))
    assert torch.equal(one, other)


def test_there_is_nothing_to_decompose():
    made = Diagonal((3, 4), damping=0.1, dtype=torch.float64)
    assert made.factors() == {}
    assert not made.is_ready
    refresh(made)
    assert made.is_ready


def test_groups_are_diagonals_of_their_own():
    each = [sample(seed=0), sample(seed=5)]
    made = Diagonal((3, 4), groups=(2,), damping=0.1, dtype=torch.float64)
    made.observe(Sample(torch.stack([s.a for s in each]), torch.stack([s.g for s in each])))
    commit(made)
    alone = torch.stack([block(Diagonal, s).dense() for s in each])
    assert relative(made.dense(), alone) < 1e-12
    assert made.eigenvalues().shape == (made.dim,) == (24,)


@pytest.mark.parametrize("repeated", [False, True])
def test_unit_vectors_add_up_within_an_example_before_they_are_squared(repeated):
    indices = torch.randint(-1, 5, (6, 3), generator=torch.Generator().manual_seed(0))
    if repeated:
        indices[:, 1] = indices[:, 0]
    rows, g = OneHot(indices, 5), normal(2, 6, 3, 4)
    made = Diagonal((4, 5), diagonal_input=True, damping=0.1, dtype=torch.float64)
    made.observe(Sample(rows, g))
    commit(made)
    F = byhand.exact(rows.dense(g.dtype), g)
    assert relative(made.dense().diagonal(), F.diagonal()) < 1e-12
