"""The TKFAC block: its numerators, its default damping, and layers that are dead."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from natgrad import Categorical
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, Block, Diagonal, Exact
from natgrad.damping import Constant, Factored
from natgrad.sample import Sample
from tests import byhand
from tests.measured import block, commit, refresh
from tests.networks import mlp, normal, relative
from tests.tapped import samples

DAMPINGS = [0.1, Factored(0.1), Constant(0.1)]


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


@given(n=st.integers(1, 4), t=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 99))
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_numerators_weigh_each_row_by_the_other_side_of_its_pair(shared, n, t, c, seed):
    found = sample(n=n, t=t, c=c, seed=seed)
    made = block(TKFAC, found, shared=shared)
    a, g = (found.a, found.g) if shared == "expand" else byhand.reduced(found.a, found.g)
    P, Psi = byhand.tkfac(a, g)
    assert relative(made.A.mean(), P) < 1e-12
    assert relative(made.G.mean(), Psi * P.trace()) < 1e-12
    assert float(made.delta.mean()) == pytest.approx(float(P.trace()), rel=1e-12)
    assert relative(made.dense(), torch.kron(Psi.contiguous(), P.contiguous())) < 1e-12


def test_columns_are_paired_with_their_own_example():
    found = sample(n=5, t=1, c=3)
    apart = Sample(found.a.flip(0), found.g)
    assert relative(block(TKFAC, apart).dense(), block(TKFAC, found).dense()) > 0.05
    assert relative(block(KFAC, apart).dense(), block(KFAC, found).dense()) < 1e-12
    columns = Sample(found.a.repeat(3, 1, 1), found.g.flatten(0, 1)[None] * 3**0.5)
    assert relative(block(TKFAC, columns).dense(), block(TKFAC, found).dense()) < 1e-12


def test_a_single_pair_is_exact():
    found = sample(n=1, t=1, c=1)
    expected = byhand.exact(found.a, found.g)
    for cls in (TKFAC, TEKFAC, KFAC, EKFAC):
        assert relative(block(cls, found).dense(), expected) < 1e-12


def test_micro_batches_are_one_batch():
    whole = sample(n=7)
    made = TKFAC((3, 4), damping=0.1, dtype=torch.float64)
    for part in (slice(0, 2), slice(2, 7)):
        made.observe(Sample(whole.a[part], whole.g[:, part]))
    commit(made)
    assert relative(made.dense(), block(TKFAC, whole).dense()) < 1e-12


def test_a_number_adds_its_root_to_both_factors():
    M = normal(3, 4)
    one, other = (
        block(TKFAC, sample(), damping).solve(M) for damping in (0.1, Factored(0.1, balanced=False))
    )
    assert torch.equal(one, other)
    assert relative(block(TKFAC, sample(), Factored(0.1)).solve(M), one) > 1e-3


def test_a_shift_of_scale_between_inputs_and_gradients_changes_nothing():
    found = sample()
    shifted = Sample(100 * found.a, found.g / 100)
    M = normal(3, 4)
    one, other = block(TKFAC, found), block(TKFAC, shifted)
    assert relative(other.dense(), one.dense()) < 1e-12
    assert relative(other.solve(M), one.solve(M)) < 1e-11


def dead() -> dict[str, Sample]:
    """A network whose first layer is behind dead units: no gradient reaches it."""
    net = mlp(3, 4, 2, activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias.fill_(-100)
    found = samples(net, normal(9, 3), Categorical())
    assert float(found["0"].g.abs().max()) == 0
    assert float(found["2"].g.abs().max()) > 0
    return found


@pytest.mark.parametrize("damping", DAMPINGS, ids=str)
def test_where_delta_is_zero_the_gradient_is_divided_by_the_damping(damping):
    made = block(TKFAC, dead()["0"], damping)
    assert float(made.delta.mean()) == 0
    M = normal(4, 4)
    assert relative(made.solve(M), M / 0.1) < 1e-12
    assert float(made.dense().abs().max()) == float(made.trace()) == 0


@pytest.mark.parametrize("cls", [TEKFAC, EKFAC, KFAC, Diagonal, Exact])
def test_other_blocks_survive_dead_layers_too(cls):
    for sample in dead().values():
        made: Block = block(cls, sample, Constant(0.1))
        M = normal(*made.shape)
        solved = made.solve(M)
        assert bool(torch.isfinite(solved).all())
        if float(sample.g.abs().max()) == 0:
            assert relative(solved, M / 0.1) < 1e-12


@pytest.mark.parametrize("cls", [TKFAC, TEKFAC])
def test_undamped_a_dead_layer_takes_no_step(cls):
    made = block(cls, dead()["0"], Constant(0.0))
    assert float(made.solve(normal(4, 4)).abs().max()) == 0


def test_a_layer_that_dies_fades_out_of_the_average():
    alive = samples(mlp(3, 4, 2), normal(9, 3), Categorical())["0"]
    made = block(TKFAC, alive, decay=0.5)
    first = float(made.trace())
    for _ in range(30):
        made.observe(dead()["0"])
        commit(made)
    refresh(made)
    assert 0 < float(made.trace()) < 1e-8 * first
    M = normal(4, 4)
    assert relative(made.solve(M), M / 0.1) < 1e-3
