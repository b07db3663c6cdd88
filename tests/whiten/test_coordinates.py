"""Plain and whitened coordinates: one map, and everything that is linear in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natgrad.whiten.coordinates import (
    Constants,
    canonical,
    carried_gradient,
    pulled_back,
    whitened,
)
from tests.networks import normal, relative


@st.composite
def layers(draw) -> tuple[list[Constants], Tensor, Tensor | None]:
    """Two sets of constants for one layer, a weight and a bias."""
    q = draw(st.sampled_from([(), (2,)]))
    o, p, k = (draw(st.integers(1, 4)) for _ in range(3))
    centred, diagonal = draw(st.booleans()), draw(st.booleans())
    output, seed = draw(st.sampled_from(["none", "diagonal", "matrix"])), draw(st.integers(0, 99))

    def matrix(n: int, seed: int) -> Tensor:
        return normal(*q, n, n, seed=seed) + 4 * torch.eye(n, dtype=torch.float64)

    def constants(seed: int) -> Constants:
        P = 1 + normal(*q, 1, k, seed=seed).abs() if diagonal else matrix(k, seed)
        Q = {"none": None, "matrix": matrix(o, seed + 1)}.get(output)
        Q = 1 + normal(*q, o, 1, seed=seed).abs() if output == "diagonal" else Q
        return Constants(P, normal(*q, k, seed=seed + 2) if centred else None, Q)

    bias = normal(*q, o, seed=seed) if draw(st.booleans()) else None
    return [constants(seed), constants(seed + 10)], normal(*q, o, p, k, seed=seed), bias


def as_matrix(M: Tensor) -> Tensor:
    return torch.diag_embed(M.flatten(-2)) if 1 in M.shape[-2:] else M


@given(layers())
def test_canonical_is_the_formula(drawn):
    [at, _], V, d = drawn
    W, b = canonical(at, V, d)
    expected = torch.einsum("...opk,...kl->...opl", V, as_matrix(at.P))
    if at.Q is not None:
        expected = torch.einsum("...om,...mpk->...opk", as_matrix(at.Q), expected)
    assert torch.allclose(W, expected, atol=1e-12)
    if at.c is None or d is None:
        assert b is d
        return
    Qd = d if at.Q is None else torch.einsum("...om,...m->...o", as_matrix(at.Q), d)
    assert torch.allclose(b, Qd - torch.einsum("...opk,...k->...o", W, at.c), atol=1e-11)


@given(layers())
def test_whitened_and_canonical_undo_each_other(drawn):
    [at, _], W, b = drawn
    for there, back in ((whitened, canonical), (canonical, whitened)):
        found = back(at, *there(at, W, b))
        assert relative(found[0], W) < 1e-11
        if b is not None:
            assert relative(found[1], b) < 1e-10


@given(layers())
def test_inverses_that_are_given_are_used(drawn):
    [at, _], W, b = drawn
    full = at.inverted()
    given_ = whitened(Constants(at.P, at.c, at.Q, 2 * full.P_inv, full.Q_inv), W, None)[0]
    assert torch.allclose(given_, 2 * whitened(at, W, b)[0], atol=1e-11)


def gradient(at: Constants, V: Tensor, d: Tensor | None, weights: Tensor) -> list[Tensor]:
    """Gradients of a loss of the plain coordinates with respect to ``V`` and ``d``."""
    leaves = [x.clone().requires_grad_() for x in (V, d) if x is not None]
    W, b = canonical(at, leaves[0], leaves[1] if d is not None else None)
    loss = (W**3 * weights).sum() + (0 if b is None else (b**3).sum())
    return list(torch.autograd.grad(loss, leaves))


@given(layers())
def test_gradients_are_pulled_back_by_the_chain_rule(drawn):
    [at, _], V, d = drawn
    weights = normal(*V.shape, seed=3)
    W, b = canonical(at, V, d)
    found = pulled_back(at, 3 * W**2 * weights, None if b is None else 3 * b**2)
    for mine, auto in zip(found, gradient(at, V, d, weights), strict=False):
        assert torch.allclose(mine, auto, rtol=1e-9, atol=1e-9)


@given(layers())
def test_gradients_are_carried_to_what_they_are_in_the_new_coordinates(drawn):
    [old, new], V, d = drawn
    weights = normal(*V.shape, seed=3)
    W, b = canonical(old, V, d)
    there = [x for x in whitened(new, W, b) if x is not None]
    before = gradient(old, V, d, weights)
    after = gradient(new, there[0], there[1] if d is not None else None, weights)
    carried = carried_gradient(old, new, before[0], before[1] if d is not None else None)
    for mine, auto in zip(carried, after, strict=False):
        assert torch.allclose(mine, auto, rtol=1e-8, atol=1e-8 * float(auto.abs().max()))


@given(layers())
def test_a_diagonal_of_second_moments_is_carried_exactly(drawn):
    [old, new], V, d = drawn
    s_V, s_d = V.square() + 0.1, None if d is None else d.square() + 0.1
    size = V.numel()
    s = torch.cat([s_V.flatten(), *([] if s_d is None else [s_d.flatten()])])
    expected = torch.zeros_like(s)
    for k in range(len(s)):  # the map applied to each coordinate, squared and weighted
        unit = torch.zeros_like(s)
        unit[k] = 1
        e_d = None if d is None else unit[size:].view(d.shape)
        moved = carried_gradient(old, new, unit[:size].view(V.shape), e_d)
        expected += s[k] * torch.cat([x.flatten() for x in moved if x is not None]).square()
    found = carried_gradient(old, new, s_V, s_d, squared=True)
    found = torch.cat([x.flatten() for x in found if x is not None])
    assert relative(found, expected) < 1e-10


def test_between_pca_bases_of_equal_scale_second_moments_keep_their_sum():
    """The ``R o R`` rule is doubly stochastic (V:C18)."""
    R = [torch.linalg.qr(normal(4, 4, seed=s))[0] for s in (1, 2)]
    old, new = (Constants(3 * each.mT) for each in R)
    s = normal(5, 1, 4).square()
    found, _ = carried_gradient(old, new, s, None, squared=True)
    assert torch.allclose(found, s @ (R[0].mT @ R[1]).square(), atol=1e-12)
    assert found.sum() == pytest.approx(float(s.sum()))
