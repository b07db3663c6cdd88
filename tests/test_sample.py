"""Paired rows."""

from __future__ import annotations

import pytest
import torch

from natgrad.sample import Sample, gradients_are_fewer, statistics_dtype
from natgrad.split import Split
from tests.networks import normal


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_statistics_are_never_kept_below_float32(given, kept):
    assert statistics_dtype(given) == kept


@pytest.mark.parametrize(
    ("a", "g"),
    [
        ((3, 2, 5), (1, 4, 2, 6)),  # other examples
        ((3, 2, 5), (1, 3, 1, 6)),  # other positions
        ((3, 5), (1, 3, 1, 6)),
        ((3, 2, 5), (3, 2, 6)),
    ],
)
def test_rows_that_do_not_pair_are_refused_with_their_shapes(a, g):
    with pytest.raises(ValueError, match="a Sample pairs") as caught:
        Sample(torch.zeros(a), torch.zeros(g))
    assert str(a) in str(caught.value)
    assert str(g) in str(caught.value)


def test_a_sample_counts_examples_and_positions():
    sample = Sample(normal(3, 2, 5), normal(4, 3, 2, 6))
    assert (sample.examples, sample.positions) == (3, 2)


def test_a_sample_is_cast_whole():
    sample = Sample(normal(3, 2, 5), normal(4, 3, 2, 6)).to(torch.float32)
    assert sample.a.dtype == sample.g.dtype == torch.float32


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize(("t", "fewer"), [(1, False), (2, False), (40, True)])
def test_gradients_are_rotated_after_or_before_they_are_formed(groups, t, fewer):
    c, n, o, i = 2, 5, 3, 4
    assert gradients_are_fewer(o, i, positions=t, columns=c) == fewer
    sample = Sample(normal(*groups, n, t, i), normal(*groups, c, n, t, o, seed=1))
    U_A, U_G = normal(*groups, i, i, seed=2), normal(*groups, o, o, seed=3)
    J = torch.einsum("...cnto,...nti->...cnoi", sample.g, sample.a)
    rotated = torch.einsum("...op,...cnoi,...ij->...cnpj", U_G, J, U_A)
    assert torch.allclose(sample.squared_gradients(U_A, U_G), rotated.square().sum((-4, -3)))
    assert torch.allclose(sample.squared_gradients(), J.square().sum((-4, -3)))
    means = rotated.sum(-3).square().sum(-3) / n**2
    assert torch.allclose(sample.squared_mean_gradients(U_A, U_G), means)


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize(("t", "fewer"), [(1, False), (4, False), (40, True)])
def test_bases_in_blocks_rotate_gradients_or_rows_too(groups, t, fewer):
    c, n, o, i = 2, 5, 5, 6
    of_a, of_g = Split.of(i, 2), Split.of(o, 2)
    entries = of_g.entries, of_a.entries
    assert gradients_are_fewer(o, i, positions=t, columns=c, entries=entries) == fewer
    sample = Sample(normal(*groups, n, t, i), normal(*groups, c, n, t, o, seed=1))
    U_A = of_a.matrix(normal(*groups, of_a.entries, seed=2))
    U_G = of_g.matrix(normal(*groups, of_g.entries, seed=3))
    whole = sample.squared_gradients(U_A.dense(), U_G.dense())
    assert torch.allclose(sample.squared_gradients(U_A, U_G), whole)
    means = sample.squared_mean_gradients(U_A.dense(), U_G.dense())
    assert torch.allclose(sample.squared_mean_gradients(U_A, U_G), means)
