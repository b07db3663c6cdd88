"""The K-FAC block: its statistics, its decompositions, its state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad import Categorical, linalg
from natgrad.blocks import KFAC
from natgrad.damping import Constant, Factored
from natgrad.sample import Sample
from tests.networks import mlp, normal, relative
from tests.tapped import decomposed, kfac, samples

DAMPINGS = [0.1, Factored(0.1), Constant(0.1)]


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


@given(n=st.integers(1, 4), t=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 99))
def test_expand_takes_every_position_as_a_row(n, t, c, seed):
    found = sample(n=n, t=t, c=c, seed=seed)
    block = kfac(found, shared="expand")
    A = torch.einsum("nti,ntj->ij", found.a, found.a) / (n * t)
    G = torch.einsum("cnto,cntp->op", found.g, found.g) / n
    assert relative(block.dense(), linalg.kron(G, A)) < 1e-12
    assert relative(block.A.mean(), A) < 1e-12


@given(n=st.integers(1, 4), t=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 99))
def test_reduce_averages_inputs_and_adds_gradients_over_positions(n, t, c, seed):
    found = sample(n=n, t=t, c=c, seed=seed)
    block = kfac(found, shared="reduce")
    a, g = found.a.mean(1), found.g.sum(2)
    A = torch.einsum("ni,nj->ij", a, a) / n
    G = torch.einsum("cno,cnp->op", g, g) / n
    assert relative(block.dense(), linalg.kron(G, A)) < 1e-12
    assert relative(block.A.mean(), A) < 1e-12


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_micro_batches_are_one_batch(shared):
    whole = sample(n=7)
    parts = [Sample(whole.a[k], whole.g[:, k]) for k in (slice(0, 2), slice(2, 7))]
    block = KFAC((3, 4), damping=0.1, shared=shared, dtype=torch.float64)
    for part in parts:
        block.observe(part)
    for moment in block.moments():
        moment.commit()
    assert relative(block.dense(), kfac(whole, shared=shared).dense()) < 1e-12


def test_factors_are_averaged_over_steps_each_for_itself():
    block = kfac(sample(), decay=0.75)
    block.observe(sample(seed=5))
    for moment in block.moments():
        moment.commit()
    first, second = kfac(sample()), kfac(sample(seed=5))
    for name in ("A", "G"):
        old, new = getattr(first, name).mean(), getattr(second, name).mean()
        expected = (0.75 * old + new) / 1.75
        assert relative(getattr(block, name).mean(), expected) < 1e-12


def test_a_number_is_factored_damping():
    M = normal(3, 4)
    one, other = (decomposed(kfac(sample(), damping=d)).solve(M) for d in (0.1, Factored(0.1)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_the_solution_is_linear_in_the_gradient(damping):
    block = decomposed(kfac(sample(), damping=damping))
    M, N = normal(3, 4, seed=8), normal(3, 4, seed=9)
    together = block.solve(2 * M - N)
    assert relative(together, 2 * block.solve(M) - block.solve(N)) < 1e-12


@pytest.mark.parametrize("damping", DAMPINGS)
def test_the_solution_is_a_descent_direction(damping):
    block = decomposed(kfac(sample(n=1, t=1, c=1), damping=damping))
    M = normal(3, 4, seed=8)
    assert float((block.solve(M) * M).sum()) > 0


@pytest.mark.parametrize("layer", ["0", "2"])
def test_undamped_the_solution_of_a_softmax_network_is_the_pseudo_inverses(layer):
    net, x = mlp(4, 5, 3), normal(40, 4)
    block = decomposed(kfac(samples(net, x, Categorical())[layer], damping=Constant(0.0)))
    M = normal(*block.shape)
    M = M - M.mean(0)  # what a softmax can ask of its layer: no gradient along the ones
    F = block.dense()
    expected = torch.linalg.pinv(F, rtol=1e-12, hermitian=True) @ M.flatten()
    assert relative(block.solve(M).flatten(), expected) < 1e-7


def test_damping_without_factors_is_added_when_solving_and_may_change():
    damping = Constant(0.1)
    block = decomposed(kfac(sample(), damping=damping))
    damping.value = 0.7
    F, M = block.dense(), normal(3, 4)
    expected = torch.linalg.solve(F + 0.7 * torch.eye(len(F), dtype=F.dtype), M.flatten())
    assert relative(block.solve(M).flatten(), expected) < 1e-11


class MeanEigenvalue:
    """A damping of one's own: the block's mean eigenvalue."""

    def ridge(self, trace: torch.Tensor, dim: int) -> torch.Tensor:
        return trace / dim


def test_a_damping_rule_is_told_the_trace_and_the_dimension_of_the_block():
    block = decomposed(kfac(sample(), damping=MeanEigenvalue()))
    F, M = block.dense(), normal(3, 4)
    ridge = F.trace() / len(F)
    expected = torch.linalg.solve(F + ridge * torch.eye(len(F), dtype=F.dtype), M.flatten())
    assert relative(block.solve(M).flatten(), expected) < 1e-11


@pytest.mark.parametrize("damping", DAMPINGS)
def test_state_holds_all_that_solving_needs(damping):
    block = decomposed(kfac(sample(), damping=damping))
    other = KFAC((3, 4), damping=damping, dtype=torch.float64)
    assert not bool(other.ready)
    other.load_state_dict(block.state_dict())
    assert bool(other.ready)
    assert torch.equal(other.solve(normal(3, 4)), block.solve(normal(3, 4)))
    assert torch.equal(other.dense(), block.dense())


def test_a_block_is_observed_once_statistics_are_committed():
    block = KFAC((3, 4), damping=0.1, dtype=torch.float64)
    block.observe(sample())
    assert not block.observed()
    for moment in block.moments():
        moment.commit()
    assert block.observed()
