"""Parameters frozen, unfrozen and added while training goes on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from tests.loop.loops import backward, every_blockwise, every_fisher, every_method, train, weights
from tests.networks import mlp, normal, relative


def counts(opt: natgrad.KFAC) -> dict[str, float]:
    """Weight of the statistics gathered so far, by layer."""
    return {
        x.view.name: float(x.block.moments().__next__().weight) for x in opt.preconditioner.layers
    }


@every_method
@every_fisher
def test_an_unfrozen_layer_becomes_preconditioned(method, fisher):
    net = mlp(4, 6, 3)
    net[0].requires_grad_(False)
    opt, start = method(net, lr=0.1, momentum=0.0, **fisher), net[0].weight.detach().clone()
    train(net, opt, range(3))
    assert torch.equal(net[0].weight, start)
    assert {r.parameter: r.handled for r in opt.report().rows}["0.weight"] == "frozen"
    net[0].requires_grad_(True)
    opt.zero_grad()
    backward(net, 3)
    plain = net[0].weight.grad.clone()
    opt.step()
    assert relative(net[0].weight.grad, plain) > 0.1
    assert relative(net[0].weight, start - 0.1 * net[0].weight.grad) < 1e-12


@every_blockwise
@every_fisher
def test_unfreezing_leaves_the_neighbours_statistics_going_on(method, fisher):
    net = mlp(4, 6, 3)
    net[0].requires_grad_(False)
    opt = method(net, lr=0.1, decay=1.0, **fisher)
    train(net, opt, range(3))
    net[0].requires_grad_(True)
    train(net, opt, range(3, 5))
    assert counts(opt) == {"0": 2 * 8, "2": 5 * 8}


@every_blockwise
def test_a_layer_frozen_for_a_while_goes_on_where_it_stood(method):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.1, decay=1.0, likelihood=Categorical())
    train(net, opt, range(2))
    net[2].requires_grad_(False)
    train(net, opt, range(2, 5))
    net[2].requires_grad_(True)
    train(net, opt, range(5, 6))
    assert counts(opt) == {"0": 6 * 8, "2": 3 * 8}


@every_method
@every_fisher
def test_a_bias_frozen_from_the_start_stays_and_its_weight_is_preconditioned(method, fisher):
    net, without = mlp(4, 3), mlp(4, 3, bias=False)
    with torch.no_grad():
        net[0].bias.zero_()
        without[0].weight.copy_(net[0].weight)
    net[0].bias.requires_grad_(False)
    for each in (net, without):
        train(each, method(each, lr=0.1, **fisher), range(3))
    assert torch.equal(net[0].bias, torch.zeros(3))
    assert relative(net[0].weight, without[0].weight) < 1e-10


@every_method
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_freezing_between_two_statistics_steps_is_noticed_at_once(method, fused, frozen):
    if fused and method is natgrad.ExactNGD:
        pytest.skip("refuses to be fused")
    net = mlp(4, 6, 3)
    kwargs = {"fused": True} if fused else {}
    opt = method(net, lr=0.01, stats_every=5, refresh_every=5, **kwargs)
    train(net, opt, range(2))
    parameter = getattr(net[0], frozen)
    parameter.requires_grad_(False)
    start = parameter.detach().clone()
    train(net, opt, range(2, 8))
    assert torch.equal(parameter, start)
    assert {r.parameter: r.handled for r in opt.report().rows}[f"0.{frozen}"] == "frozen"


@every_method
def test_freezing_between_backward_and_step_does_not_break_the_step(method):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.01)
    train(net, opt, range(2))
    opt.zero_grad()
    backward(net, 2)
    net[0].bias.requires_grad_(False)
    net[0].bias.grad = None
    start = net[0].bias.detach().clone()
    opt.step()
    assert torch.equal(net[0].bias, start)


@every_blockwise
def test_requires_grad_flipped_at_every_iteration_keeps_the_blocks(method):
    """As a GAN's loop does with its discriminator."""
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, likelihood=Categorical()) for m in (net, twin))
    for k in range(4):
        net.requires_grad_(True)
        train(net, opt, [k])
        net.requires_grad_(False)
        x = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
        net(x).sum().backward()  # of the generator
    train(twin, other, range(4))
    assert torch.equal(weights(net), weights(twin))


def test_a_network_thawed_layer_by_layer_reaches_full_coverage():
    net = mlp(4, 6, 5, 3)
    net.requires_grad_(False)
    net[4].requires_grad_(True)
    opt = natgrad.TEKFAC(net, lr=0.05, likelihood=Categorical(), stats_every=2, refresh_every=2)
    for k, layer in enumerate((net[4], net[2], net[0])):
        layer.requires_grad_(True)
        train(net, opt, range(4 * k, 4 * k + 4))
    assert all(row.reason == "" for row in opt.report().rows)
    assert len(opt.preconditioner.layers) == 3


def test_a_strict_optimizer_refuses_what_is_unfrozen_without_a_view():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

        def forward(self, x):
            return x * self.scale

    net = nn.Sequential(*mlp(4, 3), Odd())
    opt = natgrad.KFAC(net, lr=0.1, strict=True)
    train(net, opt, range(1))
    net[1].scale.requires_grad_(True)
    with pytest.raises(ValueError, match="strict=True, but some parameters are not covered: 1"):
        backward(net, 1)


@pytest.mark.parametrize("Opt", [natgrad.KFAC, natgrad.TEKFAC, natgrad.ExactNGD])
def test_a_layer_that_takes_the_place_of_another_is_preconditioned(Opt):
    net = mlp(4, 6, 3)
    opt = Opt(net, lr=0.1, likelihood=Categorical())
    for k in range(4):
        if k == 2:
            net[2] = mlp(6, 3, seed=9)[0]
            opt.add_param_group({"params": net[2].parameters()})
        x = normal(8, 4, seed=k)
        opt.zero_grad()
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        plain = net[2].weight.grad.clone()
        opt.step()
        assert not torch.allclose(net[2].weight.grad, plain, rtol=1e-3)
    rows = {row.parameter: row for row in opt.report().rows}
    assert rows["2.weight"].reason == ""
