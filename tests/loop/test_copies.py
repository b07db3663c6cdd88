"""Copies: of model and optimizer together, of either alone, and through a file."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import natgrad
from natgrad import Categorical
from tests.loop.loops import (
    backward,
    every_blockwise,
    every_fisher,
    every_method,
    moments,
    train,
    waiting,
    weights,
)
from tests.networks import mlp, normal


def pickled(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": pickled}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
SAMPLED = {"likelihood": Categorical(), "seed": 5}


@every_method
@every_copy
@pytest.mark.parametrize("fisher", [{"likelihood": None}, SAMPLED], ids=["empirical", "sampled"])
@pytest.mark.parametrize(
    "schedule", [{}, {"stats_every": 2, "refresh_every": 4}], ids=["", "rarely"]
)
def test_model_and_optimizer_together_train_on_bit_for_bit(method, copied, fisher, schedule):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.1, damping=0.1, **schedule, **fisher)
    train(net, opt, range(3))
    twin, other = copied((net, opt))
    train(net, opt, range(3, 7))
    train(twin, other, range(3, 7))
    assert torch.equal(weights(net), weights(twin))
    for one, two in zip(moments(opt), moments(other), strict=True):
        assert torch.equal(one, two)


@every_method
@every_copy
def test_they_are_independent(method, copied):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.1, **SAMPLED)
    train(net, opt, range(2))
    twin, other = copied((net, opt))
    state, start = [m.clone() for m in moments(opt)], weights(net)
    train(twin, other, range(5, 8))
    assert torch.equal(weights(net), start)
    assert all(torch.equal(m, s) for m, s in zip(moments(opt), state, strict=True))
    assert not torch.equal(weights(twin), start)
    assert opt.stats()["step"] == 2
    assert other.stats()["step"] == 5


@pytest.mark.parametrize("schedule", [{}, {"stats_every": 2, "refresh_every": 4}])
@every_copy
def test_a_fused_optimizer_and_a_schedule_of_rates_are_copied_too(copied, schedule):
    net = mlp(4, 6, 3)
    opt = natgrad.KFAC(net, lr=0.1, fused=True, **schedule, **SAMPLED)
    cycle = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    train(net, opt, range(3))
    cycle.step()
    twin, other = copied((net, opt))
    assert other.param_groups[0]["lr"] == pytest.approx(0.09)
    train(net, opt, range(3, 7))
    train(twin, other, range(3, 7))
    assert torch.equal(weights(net), weights(twin))


@every_blockwise
@every_copy
def test_the_optimizer_alone_takes_a_model_of_its_own_along(method, copied):
    net = mlp(4, 6, 3)
    opt = method(net, lr=0.1, **SAMPLED)
    train(net, opt, range(2))
    other = copied(opt)
    twin, start = other.preconditioner.model, weights(net)
    assert {id(p) for p in twin.parameters()} == {
        id(p) for group in other.param_groups for p in group["params"]
    }
    train(twin, other, range(2, 4))
    assert torch.equal(weights(net), start)
    train(net, opt, range(2, 4))
    assert torch.equal(weights(net), weights(twin))


def watched(net: nn.Module) -> natgrad.KFAC:
    opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical())
    train(net, opt, range(2))
    opt.zero_grad()
    return opt


@every_copy
def test_a_copy_of_the_model_alone_is_not_listened_to(copied):
    net = mlp(4, 6, 3)
    opt = watched(net)
    twin = copied(net)
    backward(twin, 0)
    assert waiting(opt) == 0
    backward(net, 0)
    assert waiting(opt) > 0
    fresh = natgrad.KFAC(twin, lr=0.1)  # the copy may have an optimizer of its own
    train(twin, fresh, range(2))


@every_copy
def test_a_copy_of_the_model_does_not_carry_the_optimizer(copied):
    net = mlp(4, 6, 3)
    watched(net)
    bare, file = mlp(4, 6, 3), io.BytesIO()
    torch.save(bare, file)
    big = io.BytesIO()
    torch.save(copied(net), big)
    assert len(big.getvalue()) < len(file.getvalue()) + 3000
    assert "natgrad.optim" not in repr(copied(net).__dict__)


def test_a_moving_average_of_the_weights_is_evaluated_and_updated_beside_training():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = watched(net), watched(twin)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = weights(net)
    for k in range(2, 5):
        train(net, opt, [k])
        average.update_parameters(net)
        average(normal(5, 4)).sum().backward()
        expected = 0.9 * expected + 0.1 * weights(net) if k > 2 else weights(net)
    train(twin, other, range(2, 5))
    assert torch.equal(weights(net), weights(twin))
    assert torch.allclose(weights(average.module), expected)


@every_fisher
def test_a_copy_between_forward_and_backward_leaves_the_original_pass_alone(fisher):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (natgrad.TEKFAC(m, lr=0.1, **fisher) for m in (net, twin))
    train(net, opt, [0])

    def forward(x):
        f = net(x)
        copy.deepcopy((net, opt))
        return f

    train(forward, opt, [1])
    train(twin, other, [0, 1])
    assert torch.equal(weights(net), weights(twin))
