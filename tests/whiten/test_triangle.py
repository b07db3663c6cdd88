"""Products that leave out what is zero, or known by symmetry."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from natgrad.whiten import triangle
from natgrad.whiten.triangle import gram, parts, times_lower, times_upper
from tests.networks import normal, relative


@pytest.fixture
def narrow(monkeypatch):
    """Parts of as few columns as can be."""
    monkeypatch.setattr(triangle, "WIDTH", 1)


def test_parts_cover_all_columns_and_are_not_too_narrow():
    for k in (1, 79, 319, 500, 784, 1000, 4609):
        found = parts(k)
        assert [found[0].start, found[-1].stop] == [0, k]
        assert all(a.stop == b.start for a, b in pairwise(found))
        assert len(found) == max(1, min(6, k // 160))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("k", [1, 2, 5, 6, 7, 64])
def test_products_and_their_gradients(k):
    L, weights = normal(k, k).tril(), normal(2, 3, k, seed=2)
    for times, full in ((times_lower, L), (times_upper, L.mT)):
        x = normal(2, 3, k, seed=1).requires_grad_()
        z = times(x, L)
        assert relative(z, x @ full) < 1e-14
        (grad,) = torch.autograd.grad((z * weights).sum(), x)
        assert relative(grad, weights @ full.mT) < 1e-14


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("times", [times_lower, times_upper])
def test_zeros_of_other_parts_are_never_read(times):
    k = 64
    L, x = normal(k, k).tril(), normal(5, k, seed=1).requires_grad_()
    poisoned = L.clone()
    for p in parts(k):
        poisoned[p, p.stop :] = torch.nan
    z = times(x, poisoned)
    assert torch.equal(z, times(x, L))
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert grad.isfinite().all()
    assert sum((p.stop - p.start) * p.stop for p in parts(k)) < 0.6 * k * k


@pytest.mark.usefixtures("narrow")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("times", [times_lower, times_upper])
def test_derivatives_of_every_kind(times):
    L, x = normal(6, 6).tril(), normal(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: times(x, L), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: times(x, L).pow(3), x)
    rows = torch.func.vmap(lambda row: times(row.unsqueeze(0), L).squeeze(0))(x)
    assert relative(rows, times(x, L)) < 1e-14


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("k", [1, 3, 6, 20])
@pytest.mark.parametrize("groups", [(), (2,)])
def test_a_gram_matrix_is_the_product(k, groups):
    x = normal(*groups, 9, k)
    assert relative(gram(x), x.mT @ x) < 1e-14
    wide = gram(normal(5, 40))
    off = [(p, q) for p in parts(40) for q in parts(40) if p.start > q.start]
    assert all(torch.equal(wide[p, q], wide[q, p].mT) for p, q in off)
