"""Wide factors replaced by blocks on their diagonal: all that is said is of the split matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, EigenCorrected, TwoFactor
from natgrad.damping import Constant
from natgrad.flops import Rows
from natgrad.sample import OneHot, Sample
from natgrad.split import Split, dense
from tests import byhand
from tests.measured import block, commit, damped_solve, refresh
from tests.networks import normal, relative

O, I = 7, 11
WIDESTS = (1, 2, 3, 4, 5, 8)
TWO = (KFAC, TKFAC)
CORRECTED = (EKFAC, TEKFAC)
every_width = pytest.mark.parametrize("widest", WIDESTS)
every_block = pytest.mark.parametrize("of", [*TWO, *CORRECTED])
corrected = pytest.mark.parametrize("of", CORRECTED)
two_factor = pytest.mark.parametrize("of", TWO)


def sample(seed: int = 0, n: int = 9, t: int = 2, c: int = 3) -> Sample:
    return Sample(normal(n, t, I, seed=seed), normal(c, n, t, O, seed=seed + 1))


def mask(d: int, widest: int) -> Tensor:
    split = Split.of(d, widest)
    if split is None:
        return torch.ones(d, d, dtype=torch.float64)
    return split.matrix(torch.ones(split.entries, dtype=torch.float64)).dense()


@pytest.mark.parametrize("d", range(1, 20))
@pytest.mark.parametrize("widest", [1, 2, 3, 7, 19, 30])
def test_a_factor_falls_into_as_few_blocks_as_can_be_of_widths_that_differ_by_one(d, widest):
    split = Split.of(d, widest)
    if d <= widest:
        assert split is None
        return
    widths = [w for count, w in split.runs for _ in range(count)]
    assert sum(widths) == d
    assert max(widths) <= widest
    assert max(widths) - min(widths) <= 1
    assert len(widths) == -(-d // widest)
    assert (split.entries, split.cubes) == (sum(w**2 for w in widths), sum(w**3 for w in widths))


@every_width
@two_factor
def test_the_factors_are_those_without_splitting_but_for_what_lies_between_blocks(of, widest):
    whole, made = block(of, sample()), block(of, sample(), widest=widest)
    A, G = whole.matrices()
    expected = linalg.kron(G * mask(O, widest), A * mask(I, widest))
    assert relative(made.dense(), expected) < 1e-13
    assert relative(made.dense(), whole.dense()) > 1e-2


@every_width
@every_block
@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_the_solution_is_that_of_the_split_matrix(of, widest, damping):
    made = block(of, sample(), Constant(damping), widest=widest)
    M = normal(O, I, seed=5)
    assert relative(made.solve(M), damped_solve(made.dense(), M, damping)) < 1e-10
    whole = block(of, sample(), Constant(damping)).dense()
    assert relative(made.solve(M), damped_solve(whole, M, damping)) > 1e-3


@every_width
@two_factor
def test_inverted_factors_are_those_of_the_split_matrix_with_their_ridges(of, widest):
    made = block(of, sample(), 0.1, widest=widest)
    A, G = made.matrices()
    ridge_A, ridge_G = made._ridges(A, G)
    A, G = made.input.dense(A), made.output.dense(G)
    whole = block(of, sample(), 0.1)
    assert torch.allclose(torch.stack(whole._ridges(*whole.matrices())),
                          torch.stack((ridge_A, ridge_G)), rtol=1e-13)  # fmt: skip
    damped = linalg.kron(linalg.add_ridge(G, ridge_G), linalg.add_ridge(A, ridge_A))
    M = normal(4, O, I, seed=5)
    assert relative(made.solve(M), torch.stack([damped_solve(damped, m, 0.0) for m in M])) < 1e-10
    values = torch.linalg.eigvalsh(damped)
    smallest, largest = made.extremes()
    assert float(smallest) == pytest.approx(float(values[0]), rel=0.1)
    assert float(largest) == pytest.approx(float(values[-1]), rel=0.1)


@every_width
@every_block
def test_products_trace_norm_and_spectrum_are_those_of_the_split_matrix(of, widest):
    made = block(of, sample(), widest=widest)
    F, M = made.dense(), normal(5, O, I, seed=5)
    assert relative(made.product(M).flatten(-2), M.flatten(-2) @ F) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-12)
    assert float(made.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-12)
    values = made.eigenvalues().sort().values
    assert relative(values, torch.linalg.eigvalsh(F)) < 1e-12


@every_width
@pytest.mark.parametrize("n", [1, 30], ids=["few rows", "many rows"])
@every_block
def test_from_the_rows_comes_the_same_solution(of, widest, n):
    made = block(of, sample(), widest=widest)
    rows = sample(3, n, 1, 1)
    assert relative(made.solve_rows(rows), made.solve(rows.gradient_sum())) < 1e-12


@every_width
@corrected
def test_the_scale_is_the_diagonal_of_the_exact_block_in_a_basis_of_blocks(of, widest):
    made = block(of, sample(), widest=widest)
    A, G = made.basis.eigen()
    U_A, U_G = dense(A.vectors), dense(G.vectors)
    assert torch.equal(U_A * mask(I, widest), U_A)
    assert torch.equal(U_G * mask(O, widest), U_G)
    Q, F = linalg.kron(U_G, U_A), byhand.exact(sample().a, sample().g)
    assert relative(Q.mT @ Q, torch.eye(O * I, dtype=Q.dtype)) < 1e-13
    assert relative(made.scales().flatten(), (Q.mT @ F @ Q).diagonal()) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-12)  # kept, though split


@every_width
@corrected
def test_C18_the_scale_is_carried_over_to_the_next_basis_of_blocks(of, widest):
    made = block(of, sample(), decay=0.5, widest=widest)
    before = made.dense()
    made.observe(sample(10))
    commit(made)
    refresh(made)
    A, G = made.basis.eigen()
    Q = linalg.kron(dense(G.vectors), dense(A.vectors))
    expected = Q @ torch.diag((Q.mT @ before @ Q).diagonal()) @ Q.mT
    assert relative(made.dense(), expected) < 1e-12


@every_block
@pytest.mark.parametrize("widest", [I, I + 1, 100])
def test_where_nothing_is_wider_all_is_the_same_bit_for_bit(of, widest):
    one, other = block(of, sample()), block(of, sample(), widest=widest)
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    M = normal(O, I)
    assert torch.equal(one.solve(M), other.solve(M))


@every_block
def test_only_the_blocks_are_kept_and_counted(of):
    whole, made = block(of, sample()), block(of, sample(), widest=3)
    basis, split = (b.basis if isinstance(b, EigenCorrected) else b for b in (whole, made))
    assert basis.A.value.numel() == I * I
    assert split.A.value.numel() == Split.of(I, 3).entries
    assert all(x < y for x, y in zip(made.flops(Rows(9)), whole.flops(Rows(9)), strict=True))
    assert (whole.sizes, made.sizes) == ("A 11, G 7", "A 11 in 4, G 7 in 3")


@every_block
def test_diagonal_input_factors_are_left_and_output_factors_split_beside_them(of):
    rows = OneHot(torch.randint(-1, I, (9, 2), generator=torch.Generator().manual_seed(0)), I)
    given = Sample(rows, normal(3, 9, 2, O))
    made = block(of, given, Constant(0.1), diagonal_input=True, widest=3)
    basis: TwoFactor = made.basis if isinstance(made, EigenCorrected) else made
    assert (basis.A.value.shape, basis.G.value.shape) == ((I,), (Split.of(O, 3).entries,))
    M = normal(O, I, seed=5)
    assert relative(made.solve(M), damped_solve(made.dense(), M, 0.1)) < 1e-10


@every_width
@every_block
@pytest.mark.parametrize("damping", [0.1, Constant(0.1)], ids=["number", "eigenvalues"])
def test_layers_in_groups_are_such_blocks_side_by_side(of, widest, damping):
    each = [sample(seed) for seed in (0, 5)]
    made = of((O, I), groups=(2,), damping=damping, dtype=torch.float64, decay=1.0, widest=widest)
    both = Sample(torch.stack([s.a for s in each]), torch.stack([s.g for s in each]))
    made.observe(both)
    commit(made)
    refresh(made)
    made.rescale(both)
    commit(made)
    alone = [block(of, s, damping, widest=widest) for s in each]
    M = normal(3, 2, O, I, seed=5)
    assert relative(made.dense(), torch.stack([b.dense() for b in alone])) < 1e-12
    pairs = list(zip(alone, M.unbind(1), strict=True))
    assert relative(made.product(M), torch.stack([b.product(m) for b, m in pairs], 1)) < 1e-12
    assert relative(made.solve(M), torch.stack([b.solve(m) for b, m in pairs], 1)) < 1e-11
    assert float(made.trace()) == pytest.approx(sum(float(b.trace()) for b in alone), rel=1e-12)


@every_block
def test_products_in_another_dtype_are_those_of_the_blocks(of):
    made, low = (
        block(of, sample(), widest=4, product_dtype=dtype) for dtype in (None, torch.float32)
    )
    M = normal(O, I)
    assert 0 < relative(low.solve(M), made.solve(M)) < 1e-5
