"""Layers of one shape are solved together, and get what each gets alone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical, flops
from natgrad.curvature import stacks
from tests.networks import mlp, normal


@pytest.fixture(autouse=True)
def _gradients_are_not_solved_from_rows(monkeypatch):
    monkeypatch.setattr(flops, "WORTHWHILE", float("inf"))


def made(net: nn.Module | None = None, method=natgrad.KFAC, **kwargs):
    net = mlp(4, 6, 6, 6, 6, 3) if net is None else net
    given = {"lr": 0.05, "damping": 0.1, "likelihood": Categorical(), **kwargs}
    return net, method(net, stats_every=2, refresh_every=4, **given)


def train(net: nn.Module, opt, steps: int, start: int = 0) -> None:
    for k in range(start, start + steps):
        x = normal(8, 4, seed=k)
        opt.zero_grad()
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        opt.step()


def members(opt) -> list[tuple[int, ...]]:
    return list(opt.preconditioner.curvature._stacks._stacks)


def assert_same(net: nn.Module, other: nn.Module, rtol: float = 1e-9) -> None:
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("method", [natgrad.KFAC, natgrad.TKFAC])
@pytest.mark.parametrize("bias", [True, False])
def test_steps_are_those_of_layers_solved_alone(method, bias, monkeypatch):
    net, opt = made(mlp(4, 6, 6, 6, 6, 3, bias=bias), method)
    train(net, opt, 10)
    assert members(opt) == [(1, 2, 3)]
    monkeypatch.setattr(stacks, "LEAST", 0)
    alone, alone_opt = made(mlp(4, 6, 6, 6, 6, 3, bias=bias), method)
    train(alone, alone_opt, 10)
    assert members(alone_opt) == []
    assert_same(net, alone)


def test_inverses_are_held_once():
    net, opt = made()
    train(net, opt, 5)
    blocks = [layer.block for layer in opt.preconditioner.layers]
    [stack] = opt.preconditioner.curvature._stacks._stacks.values()
    assert [b.A_inverse.data_ptr() for b in blocks[1:4]] == [A.data_ptr() for A in stack.A]
    train(net, opt, 4, start=5)  # with a new decomposition
    assert stack.is_theirs
    for A, block in zip(stack.A, blocks[1:4], strict=True):
        assert torch.equal(A, block.A_inverse)


@pytest.mark.parametrize(
    "alone",
    [{"product_dtype": torch.float32}, {"widest": 3}, {"damping": natgrad.damping.Constant(0.1)}],
)
def test_other_ways_to_solve_are_not_stacked(alone):
    net, opt = made(**alone)
    train(net, opt, 3)
    assert members(opt) == []


def test_a_layer_without_a_gradient_leaves_the_others_to_themselves():
    net, opt = made()
    train(net, opt, 3)
    x = normal(8, 4, seed=3)
    opt.zero_grad()
    F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
    net[4].weight.grad = net[4].bias.grad = None
    before = net[2].weight.detach().clone()
    opt.step()
    assert net[4].weight.grad is None
    assert not torch.equal(net[2].weight, before)


def test_resuming_and_copying_are_bit_exact():
    net, opt = made()
    train(net, opt, 5)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    resumed, resumed_opt = made(copy.deepcopy(net))
    resumed_opt.load_state_dict(torch.load(file, weights_only=True))
    pair = copy.deepcopy((net, opt))
    for each, its_opt in ((net, opt), (resumed, resumed_opt), pair):
        train(each, its_opt, 6, start=5)
        assert_same(each, net, rtol=0)
    assert members(pair[1]) == [(1, 2, 3)]


def test_buffers_that_were_moved_are_stacked_anew():
    net, opt = made()
    train(net, opt, 5)
    reference = copy.deepcopy((net, opt))
    for layer in opt.preconditioner.layers:
        layer.block.A_inverse = layer.block.A_inverse.clone()
    train(net, opt, 6, start=5)
    train(*reference, 6, start=5)
    assert_same(net, reference[0], rtol=0)
