"""Matrix products of a solve in another dtype than the statistics."""

from __future__ import annotations

import copy

import pytest
import torch

import natgrad
from natgrad import Categorical
from tests.loop.loops import data, weights
from tests.networks import mlp, relative

METHODS = [natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC]
DAMPINGS = [0.1, natgrad.damping.Constant(0.1)]


def trained(method, damping, dtype, steps: int = 3):
    net = mlp(4, 6, 3)
    opt = method(
        net, lr=0.1, damping=damping, likelihood=Categorical(), fisher="exact",
        refresh_every=2, product_dtype=dtype,
    )  # fmt: skip
    for k in range(steps):
        step(net, opt, k)
    return net, opt


def step(net, opt, k: int) -> None:
    x, y = data(k)
    opt.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    opt.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", DAMPINGS, ids=["number", "eigenvalues"])
def test_it_rounds_the_solution_and_nothing_else(method, damping):
    exact, _ = trained(method, damping, None)
    double, _ = trained(method, damping, torch.float64)
    single, opt = trained(method, damping, torch.float32)
    half, _ = trained(method, damping, torch.bfloat16)
    assert torch.equal(weights(exact), weights(double))
    assert 0 < relative(weights(single), weights(exact)) < 1e-6
    assert 1e-6 < relative(weights(half), weights(exact)) < 1e-2
    assert {b.dtype for layer in opt.preconditioner.layers for b in layer.block.buffers()} == {
        torch.float64, torch.bool,
    }  # fmt: skip


def test_new_inverses_are_converted_anew_also_in_copies_and_after_loading():
    net, opt = trained(natgrad.KFAC, 0.1, torch.bfloat16)
    copied_net, copied = copy.deepcopy((net, opt))
    fresh, other = trained(natgrad.KFAC, 0.1, torch.bfloat16, steps=1)
    fresh.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each_net, each in ((net, opt), (copied_net, copied), (fresh, other)):
        for k in range(3, 6):
            step(each_net, each, k)
    assert torch.equal(weights(copied_net), weights(net))
    assert torch.equal(weights(fresh), weights(net))
