"""Decompositions of many factors at once."""

from __future__ import annotations

import pytest
import torch

from natgrad import linalg
from natgrad.decompose import Factor, decompose
from natgrad.linalg import Eigen
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


def test_nothing_to_decompose_is_nothing():
    assert decompose([]) == []
