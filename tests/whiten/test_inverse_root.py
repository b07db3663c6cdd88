"""Inverse roots of second moments: of the matrix, and of few rows."""

from __future__ import annotations

import pytest
import torch

from natgrad.whiten.inverse_root import InverseRoot, inverse_root, inverse_root_of_rows
from tests.whiten.nets import eye, normal, relative

METHODS = ("newton-schulz", "denman-beavers", "eigh")
every_method = pytest.mark.parametrize("method", METHODS)


def expected(Y, eps):
    A = Y.mT @ Y
    k = A.shape[-1]
    e = eps * A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    l, U = torch.linalg.eigh(A + e * eye(k))
    return (U / l.sqrt().unsqueeze(-2)) @ U.mT


@every_method
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (1, 5), (7, 8)])
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_rows_and_matrix_have_the_same_root(method, shape, eps):
    Y = normal(*shape) + 1
    root = inverse_root_of_rows(Y, eps, method, inverse=True)
    assert root.D.shape == (*shape[:-2], 1, shape[-1])
    P = expected(Y, eps)
    cond = shape[-1] / eps
    assert relative(root.dense(), P) < 1e-14 * cond
    assert relative(inverse_root(Y.mT @ Y, eps, method).dense(), P) < 1e-14 * cond
    assert relative(root.dense() @ root.inverse, eye(shape[-1]).expand_as(P)) < 1e-14 * cond


@every_method
def test_in_single_precision_it_is_as_exact_as_the_spectrum_lets_it(method):
    Y = normal(50, 300) + 2
    found = inverse_root_of_rows(Y.float(), 1e-3, method).dense().double()
    assert relative(found, expected(Y, 1e-3)) < 1e-3


@every_method
def test_zero_rows_give_the_identity(method):
    Y = torch.zeros(2, 5, dtype=torch.float64)
    root = inverse_root_of_rows(Y, 1e-3, method, inverse=True)
    for found in (root.dense(), root.inverse, inverse_root(Y.mT @ Y, 1e-3, method).dense()):
        assert torch.allclose(found, eye(5), atol=1e-12)


def test_only_the_groups_that_are_zero_have_the_identity():
    Y = torch.stack([torch.zeros(2, 4, dtype=torch.float64), normal(2, 4)])
    P = inverse_root_of_rows(Y, 1e-2).dense()
    assert torch.allclose(P[0], eye(4), atol=1e-12)
    assert relative(P[1], expected(Y[1], 1e-2)) < 1e-10


def test_a_scale_goes_into_every_part():
    root = inverse_root_of_rows(normal(2, 6), 1e-2, inverse=True)
    twice = root.times(torch.tensor(2.0, dtype=torch.float64))
    assert relative(twice.dense(), 2 * root.dense()) < 1e-14
    assert relative(twice.inverse, root.inverse / 2) < 1e-14


def test_an_iteration_may_have_the_papers_count():
    A = normal(9, 4).mT @ normal(9, 4)
    few = inverse_root(A, 1e-3, "newton-schulz", iterations=2).dense()
    many = inverse_root(A, 1e-3, "newton-schulz", iterations=25).dense()
    exact = inverse_root(A, 1e-3, "eigh").dense()
    assert relative(few, exact) > 1e-2
    assert relative(many, exact) < 1e-9


def test_a_method_that_fails_is_followed_by_another():
    A = torch.diag(torch.tensor([1.0, 1e-30, 3.0]))  # below what float32 iterations resolve
    found = inverse_root(A, 1e-12, "newton-schulz")
    assert found.finite
    assert abs(found.dense()[0, 0] - 1) < 1e-5


def test_what_can_not_be_inverted_is_not_finite():
    assert not inverse_root(torch.diag(torch.tensor([1.0, 0.0])), 0.0).finite
    assert not InverseRoot(torch.full((1, 3), torch.nan)).finite
    good = inverse_root_of_rows(normal(2, 6), 1e-2)
    assert good.finite
    assert not good._replace(core=good.core * torch.inf).finite
