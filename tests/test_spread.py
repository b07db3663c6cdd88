"""Decompositions shared out over the interval: which step decomposes which layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import natgrad
from natgrad import Categorical
from natgrad.curvature import Layer
from natgrad.damping import Constant, LevenbergMarquardt
from natgrad.schedule import EVERY, Schedule, balanced
from tests.networks import mlp, normal
from tests.test_optim_state import same, through_a_file

METHODS = ("KFAC", "TKFAC", "EKFAC", "TEKFAC")
every_method = pytest.mark.parametrize("method", METHODS)


@given(st.lists(st.floats(1, 1000), max_size=12), st.integers(1, 8))
def test_every_layer_is_in_one_group_and_no_group_is_empty(costs, most):
    groups = balanced(costs, most)
    assert sorted(index for group in groups for index in group) == list(range(len(costs)))
    assert all(groups)
    assert len(groups) == min(most, len(costs))
    if groups:  # within the dearest layer of the mean
        sums = [sum(costs[index] for index in group) for group in groups]
        assert max(sums) <= sum(costs) / most + max(costs) + 1e-6


def test_groups_have_about_the_same_work():
    assert balanced([8, 7, 6, 5, 4], 2) == [[0, 3, 4], [1, 2]]
    assert balanced([0.0, 0.0, 0.0], 2) == [[0, 2], [1]]


def test_steps_with_decompositions_lie_evenly_in_the_interval_after_the_first():
    schedule = Schedule(refresh_every=6, spread=True)
    schedule.share_out([1.0, 3.0, 2.0])
    assert schedule.due(0) is EVERY
    assert [sorted(schedule.due(k)) for k in range(1, 13)] == [
        [], [2], [], [0], [], [1], [], [2], [], [0], [], [1]
    ]  # fmt: skip
    assert [schedule.refreshes(k) for k in range(1, 5)] == [False, True, False, True]


def test_burning_in_and_forced_steps_decompose_everything():
    schedule = Schedule(refresh_every=6, burn_in=2, spread=True)
    schedule.share_out([1.0, 3.0])
    assert schedule.due(1) is EVERY
    assert list(schedule.due(2)) == []
    schedule.forced = True
    assert schedule.due(2) is EVERY
    schedule.passed()
    assert list(schedule.due(2)) == []


def test_without_spread_all_are_due_at_once_whatever_they_cost():
    schedule = Schedule(refresh_every=3)
    schedule.share_out([1.0, 2.0])
    assert [schedule.due(k) is EVERY for k in range(5)] == [True, False, False, True, False]
    assert not any(schedule.due(k) for k in (1, 2, 4))


def make(method: str, net: nn.Module | None = None, **kwargs):
    net = mlp(4, 9, 6, 3) if net is None else net
    given = {"lr": 0.1, "damping": 0.01, "likelihood": Categorical(), "refresh_every": 4}
    return net, getattr(natgrad, method)(net, **{**given, **kwargs})


def step(net: nn.Module, opt: torch.optim.Optimizer, k: int) -> None:
    x = normal(8, 4, seed=k)
    opt.zero_grad()
    F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
    opt.step()


def decomposed(layer: Layer) -> list[torch.Tensor]:
    names = ("_inverse", "_vectors")
    return [b.clone() for n, b in layer.block.named_buffers() if n.endswith(names)]


def changed(opt, net: nn.Module, k: int) -> list[bool]:
    """Whether step ``k`` decomposed each layer."""
    before = [decomposed(layer) for layer in opt.preconditioner.layers]
    step(net, opt, k)
    after = [decomposed(layer) for layer in opt.preconditioner.layers]
    return [not same(x, y) for x, y in zip(before, after, strict=True)]


@every_method
@pytest.mark.parametrize("fused", [False, True])
def test_each_layer_is_decomposed_at_its_own_step(method, fused):
    net, opt = make(method, spread=True, fused=fused)
    schedule = opt.preconditioner.schedule
    assert sorted(index for slot in schedule.slots.values() for index in slot) == [0, 1, 2]
    for k in range(10):
        due = schedule.due(k)
        assert changed(opt, net, k) == [index in due for index in range(3)]


@every_method
def test_at_an_interval_of_one_it_makes_no_difference(method):
    nets = [mlp(4, 9, 6, 3) for _ in range(2)]
    for net, spread in zip(nets, (False, True), strict=True):
        _, opt = make(method, net, spread=spread, refresh_every=1)
        for k in range(4):
            step(net, opt, k)
    assert same(nets[0].state_dict(), nets[1].state_dict())


@every_method
def test_with_one_layer_only_the_step_of_the_interval_is_the_usual_one(method):
    nets = [mlp(4, 3) for _ in range(2)]
    for net, spread in zip(nets, (False, True), strict=True):
        _, opt = make(method, net, spread=spread)
        for k in range(9):
            step(net, opt, k)
    assert same(nets[0].state_dict(), nets[1].state_dict())


@every_method
def test_with_several_layers_steps_differ(method):
    nets = [mlp(4, 9, 6, 3) for _ in range(2)]
    for net, spread in zip(nets, (False, True), strict=True):
        _, opt = make(method, net, spread=spread)
        for k in range(9):
            step(net, opt, k)
    assert not same(nets[0].state_dict(), nets[1].state_dict())


@every_method
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "given",
    [
        {"stats_every": 2},
        {"fused": True, "stats_every": 2},
        {"eigen": "warm", "damping": Constant(0.01)},
        {"widest": 4},
    ],
    ids=["plain", "fused", "warm", "split"],
)
def test_training_resumes_bit_for_bit(method, steps, given):
    net, opt = make(method, spread=True, **given)
    for k in range(steps):
        step(net, opt, k)
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    for k in range(steps, 10):
        step(net, opt, k)
    other, twin = make(method, spread=True, **given)
    other.load_state_dict(saved["net"])
    twin.load_state_dict(saved["opt"])
    for k in range(steps, 10):
        step(other, twin, k)
    assert same(net.state_dict(), other.state_dict())
    assert same(opt.state_dict(), twin.state_dict())


@every_method
def test_after_a_step_taken_back_everything_is_decomposed(method):
    net, opt = make(method, spread=True, damping=LevenbergMarquardt(0.01), refresh_every=50)
    x = normal(8, 4)

    def closure(worse: float = 0.0):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), x[:, :3].argmax(1)) + worse * (not torch.is_grad_enabled())
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    opt.step(closure)
    opt.step(lambda: closure(100.0))
    assert opt.tuner.rejected == 1
    k = opt.preconditioner.steps
    assert opt.preconditioner.schedule.due(k) is EVERY
    opt.step(closure)
    assert opt.preconditioner.schedule.due(k + 1) is not EVERY


@pytest.mark.parametrize("method", ["EKFAC", "TEKFAC"])
def test_the_scale_of_a_layer_is_measured_in_its_new_basis_and_of_the_others_in_the_old(method):
    nets = [mlp(4, 9, 6, 3) for _ in range(2)]
    (_, one), (_, other) = (
        make(method, net, spread=spread, refresh_every=2)
        for net, spread in zip(nets, (False, True), strict=True)
    )
    for k in range(2):
        step(nets[0], one, k)
        step(nets[1], other, k)
    due = other.preconditioner.schedule.due(1)
    layers = zip(one.preconditioner.layers, other.preconditioner.layers, strict=True)
    for index, (usual, spread) in enumerate(layers):
        assert not spread.held
        assert float(spread.block.scale.weight) == float(usual.block.scale.weight)
        kept = same(decomposed(usual), decomposed(spread))
        assert kept is (index not in due)
        assert same(usual.block.scale.value, spread.block.scale.value) is kept


def test_layers_frozen_and_unfrozen_are_shared_out_anew():
    net, opt = make("KFAC", spread=True)
    step(net, opt, 0)
    net[0].requires_grad_(False)
    step(net, opt, 1)
    slots = opt.preconditioner.schedule.slots
    assert sorted(index for slot in slots.values() for index in slot) == [0, 1]
    net[0].requires_grad_(True)
    step(net, opt, 2)
    slots = opt.preconditioner.schedule.slots
    assert sorted(index for slot in slots.values() for index in slot) == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"spread": True}, "spread must be False for the exact natural gradient"),
        ({"widest": 8}, "widest must be None for the exact natural gradient"),
        ({"eigen": "warm"}, "eigen must be 'fresh', got 'warm'"),
    ],
)
def test_the_exact_natural_gradient_has_nothing_to_share_out_or_to_split(given, message):
    with pytest.raises(ValueError, match=message):
        natgrad.ExactNGD(mlp(4, 3), lr=0.1, damping=0.1, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widest": 0}, "widest must be at least 1, or None, got 0"),
        ({"eigen": "lukewarm"}, "eigen must be 'fresh' or 'warm', got 'lukewarm'"),
    ],
)
def test_settings_must_make_sense(given, message):
    with pytest.raises(ValueError, match=message):
        make("KFAC", **given)


@every_method
def test_a_checkpoint_of_whole_factors_does_not_fit_split_ones(method):
    net, opt = make(method)
    step(net, opt, 0)
    _, split = make(method, widest=4)
    with pytest.raises(RuntimeError, match="does not fit the checkpoint"):
        split.load_state_dict(opt.state_dict())


@every_method
def test_widths_that_nothing_exceeds_and_fresh_bases_change_no_bit(method):
    nets = [mlp(4, 9, 6, 3) for _ in range(2)]
    for net, extra in zip(nets, ({}, {"widest": 10, "eigen": "fresh"}), strict=True):
        _, opt = make(method, net, **extra)
        for k in range(6):
            step(net, opt, k)
    assert same(nets[0].state_dict(), nets[1].state_dict())
