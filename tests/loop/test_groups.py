"""Parameter groups: rates and weight decay of their own, added later, refused if out of range."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import natgrad
from tests.loop.loops import backward, every_fisher, every_method, train, weights
from tests.networks import mlp, relative


@every_method
@every_fisher
def test_each_group_moves_along_its_momentum_at_its_own_rate(method, fisher):
    net = mlp(4, 6, 3)
    head = {"params": net[2].parameters(), "lr": 0.01, "weight_decay": 0.5, "momentum": 0.5}
    opt = method(net, lr=0.1, momentum=0.8, groups=[head], damping=1.0, **fisher)
    settings = dict.fromkeys(net[0].parameters(), (0.1, 0.0, 0.8))
    settings |= dict.fromkeys(net[2].parameters(), (0.01, 0.5, 0.5))
    buffers = {p: torch.zeros_like(p) for p in settings}
    for k in range(3):
        opt.zero_grad()
        backward(net, k)
        before = {p: p.detach().clone() for p in settings}
        opt.step()
        for p, (lr, decay, momentum) in settings.items():
            buffers[p] = momentum * buffers[p] + p.grad
            assert relative(p, (1 - lr * decay) * before[p] - lr * buffers[p]) < 1e-12


@every_method
def test_grouping_alone_changes_nothing(method):
    whole, split = mlp(4, 6, 3), mlp(4, 6, 3)
    train(whole, method(whole, lr=0.1), range(4))
    groups = [{"params": split[0].weight}, {"params": [split[0].bias, split[2].bias], "lr": 0.1}]
    opt = method(split, lr=0.1, groups=groups)
    assert [len(group["params"]) for group in opt.param_groups] == [1, 1, 2]
    train(split, opt, range(4))
    assert torch.equal(weights(whole), weights(split))


@every_method
def test_a_layer_added_later_with_a_group_of_its_own_becomes_preconditioned(method):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.1, momentum=0.0, damping=0.1)
    train(net, opt, range(2))
    net.append(nn.Tanh()).append(nn.Linear(3, 3).double())
    opt.add_param_group({"params": net[4].parameters(), "lr": 0.02, "weight_decay": 0.1})
    opt.zero_grad()
    backward(net, 3)
    plain, before = net[4].weight.grad.clone(), net[4].weight.detach().clone()
    opt.step()
    assert relative(net[4].weight.grad, plain) > 0.1
    assert relative(net[4].weight, (1 - 0.002) * before - 0.02 * net[4].weight.grad) < 1e-12
    rows = {row.parameter: row for row in opt.report().rows}
    assert rows["4.weight"].reason == rows["0.weight"].reason == ""


def test_the_divergence_bound_counts_each_layer_at_its_groups_rate():
    net = mlp(4, 6, 3)
    head = {"params": net[2].parameters(), "lr": 0.01}
    opt = natgrad.KFAC(net, lr=0.1, damping=1e-3, groups=[head])
    backward(net, 0)
    M = {p: p.grad.clone() for p in net.parameters()}
    opt.step()
    rates = dict.fromkeys(net[2].parameters(), 0.01)
    kl = sum(0.5 * rates.get(p, 0.1) ** 2 * (p.grad * M[p]).sum() for p in M)
    assert opt.stats()["kl"] == pytest.approx(float(kl), rel=1e-12)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": -0.5}, "lr must be >= 0, got -0.5"),
        ({"lr": float("nan")}, "lr must be >= 0, got nan"),
        ({"momentum": -1}, "momentum must be >= 0, got -1"),
        ({"weight_decay": -2}, "weight_decay must be >= 0, got -2"),
        ({"momentum": 0, "nesterov": True}, "nesterov needs momentum > 0"),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_groups_setting_out_of_range_is_refused_by_name(group, message, later):
    net, extra = mlp(4, 6, 3), mlp(3, 2)
    opt = natgrad.KFAC(net, lr=0.1)

    def add() -> None:
        if later:
            opt.add_param_group({"params": extra.parameters(), **group})
        else:
            natgrad.KFAC(net, lr=0.1, groups=[{"params": net[0].parameters(), **group}])

    with pytest.raises(ValueError, match=message):
        add()


def test_a_parameter_in_two_groups_is_refused():
    net = mlp(4, 3)
    groups = [{"params": net[0].weight}, {"params": net[0].weight}]
    with pytest.raises(ValueError, match="more than one parameter group"):
        natgrad.KFAC(net, lr=0.1, groups=groups)


def test_parameters_outside_of_the_model_take_plain_steps_in_their_group():
    net, temperature = mlp(4, 6, 3), nn.Parameter(torch.ones((), dtype=torch.float64))
    group = {"params": temperature, "lr": 0.5, "momentum": 0.0}
    opt = natgrad.KFAC(net, lr=0.1, groups=[group])
    backward(lambda x: net(x) * temperature, 0)
    plain = temperature.grad.clone()
    opt.step()
    assert relative(temperature, 1 - 0.5 * plain) < 1e-12
