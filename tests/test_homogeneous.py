"""Rows with a column of ones that isn't written, against those where it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natgrad.homogeneous import Homogeneous, with_ones
from natgrad.layers.linear import LinearView
from natgrad.sample import Sample
from natgrad.split import Split
from tests.networks import normal, relative


def samples(n: int = 5, t: int = 3, i: int = 4) -> tuple[Sample, Sample]:
    """The same rows in both ways."""
    h, g = normal(n, t, i), normal(2, n, t, 3)
    return Sample(Homogeneous(h), g), Sample(with_ones(h), g)


@pytest.mark.parametrize("d", [1, 6, 520])  # the widest is multiplied in blocks
def test_the_second_moment_is_that_of_the_rows_and_makes_none(d):
    found, expected = samples(i=d)
    assert relative(found.input_moment(), expected.input_moment()) < 1e-14
    assert "rows" not in vars(found.inputs)


@pytest.mark.parametrize(
    "of",
    [
        lambda s: s.a,
        lambda s: s.first(2).a,
        lambda s: s.reduced().a,
        lambda s: s.to(torch.float32).a,
        lambda s: Sample.from_state(s.state()).a,
        lambda s: s.kept().a,
        lambda s: s.gradient_sum(),
        lambda s: s.squared_gradients(),
        lambda s: s.input_norms(),
        lambda s: s.input_moment(weights=normal(5, 3).square()),
        lambda s: s.input_moment(split=Split.of(5, 2)),
        lambda s: s.reduced().input_moment(),
    ],
)
def test_everything_else_is_that_of_the_rows(of):
    found, expected = (of(sample) for sample in samples())
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert relative(found, expected) < 1e-13


def test_what_is_kept_is_nobody_elses():
    h = normal(5, 3, 4)
    found = Sample(Homogeneous(h), normal(1, 5, 3, 2)).kept()
    before = found.input_moment()
    h.zero_()
    assert torch.equal(found.input_moment(), before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (5, 3, 4), (5, 2, 3, 4)])
def test_a_dense_layer_gives_its_rows_so(shape, bias):
    view, h = LinearView("", nn.Linear(4, 2, bias=bias)), normal(*shape)
    found = view.inputs(h)
    assert isinstance(found, Homogeneous) == bias
    assert found.shape == view.input_rows(h).shape
    assert torch.equal(found.rows if bias else found, view.input_rows(h))
