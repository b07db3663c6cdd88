"""Padding changes where numbers lie, not what they are."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from natgrad.padded import LEAST, padded_zeros, times
from tests.networks import normal, relative

ODD = LEAST + 3


def filled(*shape: int) -> torch.Tensor:
    return padded_zeros(*shape, dtype=torch.float64).copy_(normal(*shape))


@pytest.mark.parametrize("shape", [(ODD, ODD), (2, ODD, ODD)])
def test_products_are_those_of_the_matrix(shape):
    U, M = filled(*shape), normal(*shape[:-2], 5, ODD, seed=1)
    assert U.stride(-2) > ODD
    assert relative(times(M, U), M @ U.contiguous()) < 1e-14
    assert relative(times(M, U.mT), M @ U.mT.contiguous()) < 1e-14


@pytest.mark.parametrize("shape", [(ODD,), (5, ODD), (LEAST - 1, LEAST - 1), (LEAST, LEAST)])
def test_what_is_narrow_or_even_or_no_square_is_left_alone(shape):
    assert padded_zeros(*shape).is_contiguous()


def test_a_part_of_something_else_is_multiplied_as_it_is():
    whole = normal(ODD + 1, 2 * LEAST)
    for U in (whole[:ODD, :ODD], whole[1:, 3 : 3 + ODD]):
        assert torch.equal(times(whole[:5, :ODD], U), whole[:5, :ODD] @ U)


def test_copies_and_checkpoints_keep_the_numbers():
    U = filled(ODD, ODD)
    buffer = io.BytesIO()
    torch.save(U, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(U), torch.load(buffer, weights_only=True), U.to(torch.float32)):
        assert torch.equal(other.double(), U if other.dtype == U.dtype else U.float().double())
        assert relative(times(normal(5, ODD).to(other), other).double(), normal(5, ODD) @ U) < 1e-5
