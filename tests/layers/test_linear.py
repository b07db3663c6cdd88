"""Linear layers read as matrices."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from natgrad.layers import LinearView
from tests.layers import laws
from tests.networks import normal


def view(i: int, o: int, bias: bool = True) -> LinearView:
    return LinearView("layer", nn.Linear(i, o, bias=bias).double())


@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    i=st.integers(1, 4),
    o=st.integers(1, 4),
    bias=st.booleans(),
)
def test_rows_times_the_matrix_are_the_output_for_any_leading_dimensions(leading, i, o, bias):
    found, h = view(i, o, bias), normal(*leading, i)
    z = found.module(h)
    z.sum().backward()
    parts = [p.detach().view(o, -1) for p in found.module.parameters()]
    rows = found.input_rows(h)
    assert found.shape == (o, i + bias)
    assert rows.shape[-1] == i + bias
    assert torch.allclose(rows @ torch.cat(parts, 1).mT, found.output_rows(z.detach()))
    n = leading[0] if leading else 1
    t = h[..., 0].numel() // n
    assert tuple(rows.shape[:2]) == tuple(found.output_rows(z).shape[:2]) == (n, t)


@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    i=st.integers(1, 4),
    o=st.integers(1, 4),
    bias=st.booleans(),
)
def test_gradient_rows_times_input_rows_are_the_gradient(leading, i, o, bias):
    found, h = view(i, o, bias), normal(*leading, i)
    z, weights = found.module(h), normal(*leading, o, seed=1)
    (z * weights).sum().backward()
    M = torch.einsum("nto,nti->oi", found.output_rows(weights), found.input_rows(h))
    assert torch.allclose(found.grad(), M)


@given(i=st.integers(1, 4), o=st.integers(1, 4), bias=st.booleans())
def test_a_gradient_that_is_written_is_read_again_and_in_place(i, o, bias):
    found = view(i, o, bias)
    found.module(normal(2, i)).sum().backward()
    places = [p.grad for p in found.module.parameters()]
    M = normal(o, i + bias, seed=1)
    found.set_grad(M)
    assert torch.equal(found.grad(), M)
    assert torch.equal(found.module.weight.grad, M[:, :i])
    if bias:
        assert torch.equal(found.module.bias.grad, M[:, i])
    assert all(p.grad is g for p, g in zip(found.module.parameters(), places, strict=True))


def test_without_any_gradient_there_is_no_matrix():
    assert view(3, 2).grad() is None


def test_a_missing_bias_gradient_is_zero_and_gets_a_place():
    found = view(3, 2)
    found.module.weight.grad = normal(2, 3)
    assert torch.equal(found.grad(), torch.cat([normal(2, 3), normal(2, 1) * 0], 1))
    M = normal(2, 4)
    found.set_grad(M)
    assert torch.equal(found.module.bias.grad, M[:, 3])


def test_a_frozen_bias_is_left_out_of_the_matrix():
    found = view(3, 2)
    found.module.bias.requires_grad_(False)
    assert found.shape == (2, 3)
    assert list(found.parameters()) == ["weight"]
    assert found.input_rows(normal(5, 3)).shape == (5, 1, 3)
    found.module(normal(5, 3)).sum().backward()
    found.set_grad(normal(2, 3))
    assert torch.equal(found.grad(), normal(2, 3))
    assert found.module.bias.grad is None


def test_a_half_precision_gradient_keeps_its_dtype():
    found = LinearView("layer", nn.Linear(3, 2).bfloat16())
    found.module(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
    found.set_grad(torch.ones(2, 4) / 3)
    assert found.grad().dtype == torch.bfloat16
    assert torch.equal(found.grad(), (torch.ones(2, 4) / 3).bfloat16())


def test_a_view_prints_the_layer_it_reads():
    assert repr(view(3, 2)) == "LinearView('layer', 2x4)"


@settings(max_examples=15, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), max_size=2),
    i=st.integers(1, 4),
    o=st.integers(1, 4),
    bias=st.booleans(),
)
def test_laws(leading, i, o, bias):
    x = normal(3, *leading, i)
    laws.check(laws.with_head(nn.Linear(i, o, bias=bias), x), x)
