"""Closures, gradient clipping, accumulation, and backward passes whose result is dropped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from tests.loop.loops import (
    backward,
    data,
    every_fisher,
    every_method,
    moments,
    train,
    waiting,
    weights,
)
from tests.networks import mlp, relative


def pieces(net: nn.Module, sizes: list[int], reduction: str = "mean") -> None:
    """Backward passes of one batch of 8 in micro-batches, each loss weighted by its share."""
    x, y = data(0)
    for h, t in zip(x.split(sizes), y.split(sizes), strict=True):
        share = len(h) / len(x) if reduction == "mean" else 1.0
        (F.cross_entropy(net(h), t, reduction=reduction) * share).backward()


@every_method
@every_fisher
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[4, 4], [1, 5, 2]], ids=str)
def test_micro_batches_have_the_statistics_and_the_step_of_the_whole(
    method, fisher, reduction, sizes
):
    found = []
    for split in ([8], sizes):
        net = mlp(4, 6, 3)
        opt = method(net, lr=0.1, damping=0.1, reduction=reduction, **fisher)
        pieces(net, split, reduction)
        opt.step()
        found.append((net, opt))
    (net, opt), (twin, other) = found
    if method is natgrad.ExactNGD:  # gradients come in another order
        assert (
            relative(moments(other)[0].T @ moments(other)[0], moments(opt)[0].T @ moments(opt)[0])
            < 1e-12
        )
    elif method in (natgrad.KFAC, natgrad.TKFAC):
        for one, both in zip(moments(other), moments(opt), strict=True):
            assert relative(one, both) < 1e-12
    assert relative(weights(twin), weights(net)) < 1e-9


@every_method
def test_an_accumulated_step_decays_the_statistics_once(method):
    nets = []
    for sizes in ([8], [2, 2, 2, 2]):
        net = mlp(4, 6, 3)
        opt = method(net, lr=0.1, decay=0.5, damping=0.1, likelihood=Categorical(), fisher="exact")
        train(net, opt, range(1, 3))
        opt.zero_grad()
        pieces(net, sizes)
        opt.step()
        nets.append(weights(net))
    assert relative(nets[1], nets[0]) < 1e-9


@every_method
@every_fisher
@pytest.mark.parametrize("to_none", [True, False], ids=["to None", "to zero"])
@pytest.mark.parametrize("by", ["model", "optimizer"])
def test_a_dropped_backward_leaves_no_statistics(method, fisher, to_none, by):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, **fisher) for m in (net, twin))
    train(net, opt, [0])
    train(twin, other, [0])
    opt.zero_grad()
    backward(net, 7)
    (net if by == "model" else opt).zero_grad(set_to_none=to_none)
    backward(net, 1)
    opt.step()
    train(twin, other, [1])
    assert torch.equal(weights(net), weights(twin))


@every_method
def test_the_model_may_zero_the_gradients_in_the_optimizers_place(method):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, likelihood=Categorical()) for m in (net, twin))
    for k in range(3):
        net.zero_grad()
        for part in (0, 1):
            backward(net, 2 * k + part)
        opt.step()
        other.zero_grad()
        for part in (0, 1):
            backward(twin, 2 * k + part)
        other.step()
    assert torch.equal(weights(net), weights(twin))


@every_method
@every_fisher
def test_clipping_scales_the_plain_gradient_and_so_the_natural_one(method, fisher):
    """The curvature knows nothing of the clipping: without momentum the step is scaled by it."""
    steps, factor = [], 1.0
    for clips in (False, True):
        net = mlp(4, 6, 3)
        opt, before = method(net, lr=0.1, momentum=0.0, damping=0.1, **fisher), weights(net)
        backward(net, 0)
        if clips:
            length = nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            factor = 0.05 / (float(length) + 1e-6)
        opt.step()
        steps.append(weights(net) - before)
    assert factor < 0.9
    assert relative(steps[1], factor * steps[0]) < 1e-9


@every_method
def test_a_closure_is_the_plain_loop(method):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, likelihood=Categorical()) for m in (net, twin))

    def closure(k: int) -> Tensor:
        opt.zero_grad()
        x, y = data(k)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for k in range(3):
        x, y = data(k)
        expected = F.cross_entropy(twin(x), y)
        assert torch.equal(opt.step(lambda k=k: closure(k)), expected)
        train(twin, other, [k])
    assert torch.equal(weights(net), weights(twin))


@every_method
def test_a_closure_evaluated_twice_counts_the_second_time_alone(method):
    """As a line search does: every evaluation zeroes the gradients first."""
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, likelihood=Categorical()) for m in (net, twin))

    def closure() -> None:
        for k in (5, 0):
            opt.zero_grad()
            backward(net, k)

    opt.step(closure)
    train(twin, other, [0])
    assert torch.equal(weights(net), weights(twin))


def test_nothing_waits_after_a_step_or_zero_grad():
    net = mlp(4, 6, 3)
    opt = natgrad.EKFAC(net, lr=0.1)
    backward(net, 0)
    assert waiting(opt) > 0
    opt.step()
    assert waiting(opt) == 0
    backward(net, 0)
    opt.zero_grad()
    assert waiting(opt) == 0
