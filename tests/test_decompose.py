"""Decompositions of many factors at once."""

from __future__ import annotations

import pytest
import torch

from natgrad import linalg
from natgrad.decompose import Factor, decompose, described
from natgrad.linalg import Eigen
from natgrad.split import BlockDiagonal, Split, gram
from tests.networks import normal, relative


def psd(d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    X = normal(d, d, seed=seed)
    return (X @ X.mT + 0.1 * torch.eye(d, dtype=X.dtype)).to(dtype)


def check(factor: Factor, found: Eigen | torch.Tensor | None) -> None:
    M = factor.matrix
    if factor.ridge is None:
        assert isinstance(found, Eigen)
        back = found.vectors @ torch.diag(found.values) @ found.vectors.mT
        assert relative(back, M) < 1e-5
    else:
        damped = linalg.add_ridge(M, factor.ridge)
        assert relative(damped @ found, torch.eye(len(M), dtype=M.dtype)) < 1e-5
        assert found.dtype == M.dtype


def test_answers_come_in_the_order_of_the_factors():
    factors = [
        Factor(psd(3)), Factor(psd(4, 1), 0.5), Factor(psd(3, 2), torch.tensor(2.0)),
        Factor(psd(3, 3)), Factor(psd(4, 4, torch.float32), 0.1), Factor(psd(4, 5), 0.25),
        Factor(psd(1, 6)), Factor(psd(4, 7, torch.float32)),
    ]  # fmt: skip
    for factor, found in zip(factors, decompose(factors), strict=True):
        check(factor, found)


def test_equal_shapes_are_decomposed_in_one_call(monkeypatch):
    calls = []
    true_inverse = linalg.inverse
    monkeypatch.setattr(linalg, "inverse", lambda M: calls.append(M.shape) or true_inverse(M))
    decompose([Factor(psd(3, k), 0.1 * k) for k in range(4)] + [Factor(psd(5), 1.0)])
    assert sorted(calls) == [(1, 5, 5), (4, 3, 3)]


@pytest.mark.parametrize("ridge", [None, 0.1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_fails_alone(ridge, bad):
    factors = [Factor(psd(3, k), ridge) for k in range(3)]
    factors[1].matrix[0, 2] = bad
    found = decompose(factors)
    assert found[1] is None
    check(factors[0], found[0])
    check(factors[2], found[2])


def test_a_matrix_that_is_not_positive_definite_fails_alone():
    factors = [Factor(psd(3), 0.1), Factor(-psd(3), 0.1), Factor(psd(3, 2), float("nan"))]
    found = decompose(factors)
    assert found[1] is None
    assert found[2] is None
    check(factors[0], found[0])


def in_blocks(d: int, widest: int, seed: int = 0) -> BlockDiagonal:
    split = Split.of(d, widest)
    return split.matrix(gram(normal(2 * d, d, seed=seed), split=split))


@pytest.mark.parametrize("ridge", [None, torch.tensor(0.3, dtype=torch.float64)])
@pytest.mark.parametrize(("d", "widest"), [(7, 3), (8, 4), (7, 6)])
def test_of_a_matrix_in_blocks_each_is_decomposed(d, widest, ridge):
    M = in_blocks(d, widest)
    [found] = decompose([Factor(M, ridge)])
    if ridge is None:
        U = found.vectors.dense()
        assert relative(U @ torch.diag(found.values) @ U.mT, M.dense()) < 1e-6
        assert relative(U.mT @ U, torch.eye(d, dtype=U.dtype)) < 1e-12
    else:
        expected = torch.linalg.inv(linalg.add_ridge(M.dense(), ridge))
        assert relative(found.dense(), expected) < 1e-12


def test_blocks_of_equal_width_are_stacked_over_factors(monkeypatch):
    calls = []
    true_inverse = linalg.inverse
    monkeypatch.setattr(linalg, "inverse", lambda M: calls.append(M.shape) or true_inverse(M))
    ridge = torch.tensor(0.1, dtype=torch.float64)
    decompose([Factor(in_blocks(11, 4, seed), ridge) for seed in range(2)])
    assert sorted(calls) == [(2, 1, 3, 3), (2, 2, 4, 4)]


@pytest.mark.parametrize(("ridge", "bad"), [(None, float("nan")), (0.1, float("nan")), (0.1, -1e6)])
def test_a_factor_of_which_a_block_fails_fails_whole_and_alone(ridge, bad):
    factors = [Factor(in_blocks(11, 4, seed), ridge) for seed in range(3)]
    factors[1].matrix.stacks[1][0, 1, 1] = bad
    found = decompose(factors)
    assert [each is None for each in found] == [False, True, False]
    assert described(factors[1]).startswith("11x11 (")


def test_nothing_to_decompose_is_nothing():
    assert decompose([]) == []
