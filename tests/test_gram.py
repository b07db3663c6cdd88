"""The exact block through the Gram matrix, against the block written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad.gram import ExactBlock
from natgrad.sample import Sample
from tests.measured import BLOCKS, block, damped_solve
from tests.networks import mlp, normal, relative
from tests.oracle import blocks
from tests.tapped import LIKELIHOODS, samples

every_seed = pytest.mark.parametrize("seed", range(3))
every_shape = pytest.mark.parametrize("shape", [(12, 3), (5, 2, 3)], ids=["rows", "shared"])
every_block = pytest.mark.parametrize("cls", BLOCKS)


def case(seed: int, shape: tuple[int, ...]) -> tuple[Sample, Tensor]:
    net, x = mlp(3, 4, 2, seed=seed), normal(*shape, seed=seed)
    exact = blocks(net, x, "categorical")["0"]
    return samples(net, x, LIKELIHOODS["categorical"])["0"], exact


def parts(sample: Sample) -> list[Sample]:
    """The same examples as two samples of unequal size."""
    return [Sample(sample.a[k], sample.g[:, k]) for k in (slice(0, 2), slice(2, None))]


@every_seed
@every_shape
def test_norm_trace_and_spectrum_are_those_of_the_exact_block(seed, shape):
    sample, F = case(seed, shape)
    found = ExactBlock("0", parts(sample))
    assert found.examples == sample.examples
    assert found.dim == len(F)
    assert relative(found.dense(), F) < 1e-12
    assert float(found.trace()) == pytest.approx(float(F.trace()), rel=1e-12)
    assert float(found.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-12)
    expected = torch.linalg.eigvalsh(F).flip(0)[: len(found.eigenvalues())]
    assert relative(found.eigenvalues(), expected) < 1e-12


@every_seed
@every_shape
@every_block
def test_inner_products_and_errors_are_those_of_the_written_out_matrices(seed, shape, cls):
    sample, F = case(seed, shape)
    approximation = block(cls, sample)
    found = ExactBlock("0", parts(sample))
    other = approximation.dense()
    assert float(found.inner(approximation)) == pytest.approx(float((F * other).sum()), rel=1e-12)
    assert found.error(approximation) == pytest.approx(relative(other, F), abs=1e-7)


@every_seed
@every_shape
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_solutions_are_those_of_the_damped_block(seed, shape, damping):
    sample, F = case(seed, shape)
    M = normal(4, 4, seed=seed)
    found = ExactBlock("0", parts(sample)).solve(M, damping)
    assert relative(found, damped_solve(F, M, damping)) < 1e-10


def test_groups_are_blocks_of_their_own():
    a, g = normal(2, 5, 3, 4), normal(2, 2, 5, 3, 3, seed=1)
    found = ExactBlock("grouped", [Sample(a, g)])
    each = [ExactBlock("one", [Sample(a[q], g[q])]) for q in range(2)]
    assert found.dim == 24
    assert torch.equal(found.dense(), torch.stack([one.dense() for one in each]))
    assert float(found.trace()) == pytest.approx(sum(float(one.trace()) for one in each))
    whole = torch.block_diag(*found.dense())
    assert float(found.squared_norm()) == pytest.approx(float(whole.square().sum()), rel=1e-12)
    expected = torch.linalg.eigvalsh(whole).flip(0)
    assert relative(found.eigenvalues(), expected[: len(found.eigenvalues())]) < 1e-10
    M = normal(2, 3, 4)
    assert relative(found.solve(M, 0.1), damped_solve(whole, M, 0.1)) < 1e-10


def test_gradients_beyond_a_gibibyte_are_refused_with_a_number_of_examples_that_fit():
    a, g = torch.zeros(1000, 1, 500), torch.zeros(1, 1000, 1, 500)
    with pytest.raises(ValueError, match=r"'huge' would take 1\.9 GiB.* at most 536 of the 1000"):
        ExactBlock("huge", [Sample(a, g)])


def test_nothing_of_it_is_written_out_in_full():
    sample, _ = case(0, (12, 3))
    found = ExactBlock("0", [sample])
    largest = max(tensor.numel() for tensor in (found.J, found.K))
    rows = sample.examples * sample.g.shape[0]
    assert largest == rows * max(rows, 16)
