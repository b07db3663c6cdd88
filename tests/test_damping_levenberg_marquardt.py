"""Damping by the reduction ratio: its rules, and blocks that follow its value."""

from __future__ import annotations

import copy
from math import inf, nan

import pytest
import torch

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant, Factored, LevenbergMarquardt
from tests.loop.loops import backward, data, every_method, weights
from tests.networks import mlp, relative
from tests.test_optim_resume import normed
from tests.test_optim_state import same

W = 0.95**5


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [
        (0.76, W), (1.0, W), (5.0, W), (0.75, 1), (0.5, 1), (0.25, 1), (0.2499, 1 / W),
        (0.0, 1 / W), (-3.0, 1 / W), (nan, 1 / W), (inf, 1 / W), (-inf, 1 / W),
    ],
)  # fmt: skip
def test_a_good_ratio_shrinks_it_and_a_bad_one_makes_it_grow(ratio, factor):
    damping = LevenbergMarquardt(2.0)
    damping.adapt(ratio)
    assert damping.value == pytest.approx(2.0 * factor, rel=1e-14)


def test_it_stays_between_its_bounds():
    damping = LevenbergMarquardt(1.0, every=40, minimum=0.5, maximum=4.0)
    for ratio, bound in ((1.0, 0.5), (1.0, 0.5), (-1.0, 0.5 / 0.95**40), (-1.0, 4.0), (-1.0, 4.0)):
        damping.adapt(ratio)
        assert damping.value == pytest.approx(bound)
    damping.reject()
    assert damping.value == 4.0


def test_a_step_taken_back_makes_it_grow():
    damping = LevenbergMarquardt(1.0, rejected=3.0)
    damping.reject()
    assert damping.value == 3.0


def test_steps_are_counted_from_nought():
    damping = LevenbergMarquardt(every=3, reject_every=2)
    assert [k for k in range(8) if damping.measures(k)] == [2, 5]
    assert [k for k in range(8) if damping.looks(k)] == [1, 3, 5, 7]
    assert not any(LevenbergMarquardt(reject_every=None).looks(k) for k in range(20))


@pytest.mark.parametrize(
    "given",
    [
        {"value": -1.0}, {"value": inf}, {"value": nan}, {"every": 0}, {"decay": 0.0},
        {"decay": 1.1}, {"low": 0.8}, {"minimum": -1.0}, {"minimum": 2.0, "maximum": 1.0},
        {"reject_every": 0}, {"rejected": 0.5}, {"rejected": inf},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is out of range"):
        LevenbergMarquardt(**given)


def test_a_factored_block_splits_the_present_value():
    traces = torch.tensor(3.0), torch.tensor(0.5)
    for balanced in (True, False):
        damping = LevenbergMarquardt(0.3)
        following = damping.following(Factored(1.0, balanced))
        for _ in range(2):
            expected = Factored(damping.value, balanced).ridges(*traces, 4, 2)
            assert following.ridges(*traces, 4, 2) == expected
            damping.reject()
        assert following.value == damping.value


def test_other_blocks_add_it_to_their_eigenvalues():
    damping = LevenbergMarquardt(0.3)
    following = damping.following(Constant(1.0))
    damping.reject()
    assert following.ridge(torch.tensor(5.0), 3) == 0.6


def steps(method, damping, steps: int = 4, **kwargs):
    net = normed() if kwargs.pop("norm", False) else mlp(4, 6, 3)
    opt = method(net, lr=0.05, damping=damping, likelihood=Categorical(), **kwargs)
    for k in range(steps):
        opt.zero_grad()
        x, y = data(k)
        if isinstance(net[0], torch.nn.Conv2d):
            x = torch.cat([x] * 13, 1)[:, :50].reshape(8, 2, 5, 5)
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        if isinstance(damping, LevenbergMarquardt):
            opt.step(targets=y)
        else:
            opt.step()
    return net, opt


@every_method
@pytest.mark.parametrize("norm", [False, True], ids=["mlp", "with a norm layer"])
@pytest.mark.parametrize("schedule", [{}, {"stats_every": 2, "refresh_every": 3}], ids=str)
def test_while_nothing_adapts_it_is_the_number_bit_for_bit(method, norm, schedule):
    still = LevenbergMarquardt(0.07, every=10**6, reject_every=None)
    net, opt = steps(method, still, norm=norm, **schedule)
    twin, other = steps(method, 0.07, norm=norm, **schedule)
    assert torch.equal(weights(net), weights(twin))
    one, two = opt.state_dict(), other.state_dict()
    assert same(one["preconditioner"], two["preconditioner"])
    figures = {k: v for k, v in opt.stats().items() if k in other.stats()}
    assert figures == pytest.approx(other.stats(), nan_ok=True)


@every_method
def test_the_measurement_itself_changes_no_step(method):
    level = LevenbergMarquardt(0.07, every=1, decay=1.0, rejected=1.0, reject_every=None)
    net, _ = steps(method, level)
    twin, _ = steps(method, 0.07)
    assert torch.equal(weights(net), weights(twin))


@every_method
def test_blocks_solve_with_the_value_of_the_moment(method):
    """At the next decomposition, for those that invert their factors."""
    damping = LevenbergMarquardt(0.07, every=10**6, reject_every=None)
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.0, damping=damping, likelihood=Categorical(), fisher="exact", decay=0.0)
    found = []
    for value in (0.07, 5.0):
        damping.value = value
        opt.zero_grad()
        backward(net, 0)
        opt.step(targets=data(0)[1])
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        twin = mlp(4, 6, 3)
        other = method(
            twin, lr=0.0, damping=value, likelihood=Categorical(), fisher="exact", decay=0.0
        )
        backward(twin, 0)
        other.step()
        expected = torch.cat([p.grad.flatten() for p in twin.parameters()])
        assert relative(found[-1], expected) < 1e-12
    assert relative(*found) > 0.5


def test_two_optimizers_copied_from_one_adapt_apart():
    _, opt = steps(natgrad.KFAC, LevenbergMarquardt(0.07, every=1))
    other = copy.deepcopy(opt)
    value = other.tuner.adapted.value
    opt.tuner.adapted.reject()
    assert other.tuner.adapted.value == value
    ridges = [float(layer.block.ridge()) for layer in other.preconditioner.layers]
    assert ridges == pytest.approx([value] * 2)
