"""Steps that choose their length: groups, schedulers, decay, micro-batches, frozen parameters."""

from __future__ import annotations

import copy
from math import isfinite

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad import Auto
from natgrad.optim import NaturalGradient
from tests import oracle
from tests.loop.loops import data, every_blockwise, every_method, weights
from tests.measured import reordered
from tests.networks import mlp, relative
from tests.test_tuning import Closure, always, every_lr, make, train


def stepped(net: nn.Module, opt: NaturalGradient) -> tuple[Tensor, Tensor]:
    before = weights(net)
    closure = Closure(net, opt)
    closure()
    opt.step()
    return weights(net) - before, torch.cat([p.grad.flatten() for p in net.parameters()])


@every_method
def test_the_groups_rate_multiplies_and_a_scheduler_halves_the_step(method):
    whole, _ = stepped(*make(method, momentum=0.0))
    net, opt = make(method, momentum=0.0)
    assert opt.param_groups[0]["lr"] == 1
    torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 0.5)
    assert opt.param_groups[0]["lr"] == 0.5
    half, _ = stepped(net, opt)
    assert relative(2 * half, whole) < 1e-12


@pytest.mark.parametrize("lr", [0.3, 0.0])
def test_groups_with_different_multipliers_are_one_direction(lr):
    net = mlp(4, 6, 3)
    _, opt = make(
        net=net, lr=Auto(1.0), momentum=0.0, groups=[{"params": net[2].parameters(), "lr": lr}]
    )
    x, y = data(0)
    dense = reordered(net, oracle.fisher(net, x, "categorical")).detach()
    dense += 0.1 * torch.eye(len(dense)).double()
    loss = oracle.mean_nll("categorical", net(x), y)
    g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))])
    opt.zero_grad()
    delta, U = stepped(net, opt)
    v = U * torch.cat([torch.ones(30), torch.full((21,), lr, dtype=torch.float64)])
    assert relative(delta, -(g @ v) / (v @ dense @ v) * v) < 1e-9


def test_all_multipliers_at_nothing_is_no_step():
    net, opt = make(weight_decay=0.1)
    opt.param_groups[0]["lr"] = 0.0
    delta, _ = stepped(net, opt)
    assert not bool(delta.any())


@every_method
def test_weight_decay_is_decoupled_with_the_chosen_rate(method):
    net, opt = make(method, weight_decay=0.1, momentum="auto")
    before = None
    for _ in range(2):
        start = weights(net)
        delta, U = stepped(net, opt)
        lr, mu = opt.stats()["lr"], opt.stats()["momentum"]
        pure = -lr * U + (0 if before is None else mu * before)
        assert relative(delta, pure - lr * 0.1 * start) < 1e-12
        before = pure


def test_weights_decay_by_the_rate_of_their_own_layer():
    ends = []
    for decay in (0.0, 0.1):
        net, opt = make(lr=Auto(per="layer"), momentum=0.0, weight_decay=decay)
        start = [p.detach().clone() for p in net.parameters()]
        delta, U = stepped(net, opt)
        ends.append(delta)
    sizes = [p.numel() for p in net.parameters()]
    lost, moved = (ends[0] - ends[1]).split(sizes), ends[0].split(sizes)
    rates = [-float(d @ u / (u @ u)) for d, u in zip(moved, U.split(sizes), strict=True)]
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0] != pytest.approx(rates[2], rel=1e-2)
    for x, rate, p in zip(lost, rates, start, strict=True):
        assert torch.allclose(x, max(rate, 0.0) * 0.1 * p.flatten(), rtol=1e-8, atol=1e-12)


def test_a_rate_for_what_no_layer_covers_and_one_for_a_layer_used_twice():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Linear(4, 4).double(), mlp(4, 3)
            self.scale = nn.Parameter(torch.ones(4).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.one(self.one(x).tanh()) * self.scale)

    torch.manual_seed(0)
    net, opt = make(net=Odd(), lr=Auto(per="layer"), momentum=0.0)
    delta, U = stepped(net, opt)
    names, sizes = zip(*((n, p.numel()) for n, p in net.named_parameters()), strict=True)
    parts = zip(delta.split(sizes), U.split(sizes), strict=True)
    rates = {}
    for name, (moved, u) in zip(names, parts, strict=True):
        rates[name] = -float(moved @ u / (u @ u))
        assert relative(moved, -rates[name] * u) < 1e-9, name
    assert rates["last.0.weight"] == pytest.approx(rates["last.0.bias"])
    assert rates["one.weight"] == pytest.approx(rates["one.bias"])
    apart = [rates[name] for name in ("scale", "one.weight", "last.0.weight")]
    assert len({round(rate, 6) for rate in apart}) == 3


def test_what_has_a_rate_of_its_own_is_one_of_three():
    with pytest.raises(ValueError, match="per must be 'step' or 'group' or 'layer'"):
        Auto(per="parameter")


# micro-batches, frozen and unused parameters ----------------------------------------------------


@every_method
def test_micro_batches_are_one_batch(method):
    ends = []
    for sizes in ([8], [3, 5]):
        net, opt = make(method, lr=Auto(1.0), momentum="auto", fisher="exact", damping=always())
        for k in range(3):
            x, y = data(k)

            def closure(x=x, y=y, sizes=sizes, net=net, opt=opt) -> Tensor:
                opt.zero_grad()
                total = torch.zeros(())
                for h, t in zip(x.split(sizes), y.split(sizes), strict=True):
                    loss = F.cross_entropy(net(h), t) * len(h) / len(x)
                    if torch.is_grad_enabled():
                        loss.backward()
                    total = total + loss.detach()
                return total

            opt.step(closure)
        ends.append((weights(net), opt.stats()["lr"], opt.stats()["damping"]))
    assert relative(ends[1][0], ends[0][0]) < 1e-8
    assert ends[1][1:] == pytest.approx(ends[0][1:], rel=1e-7)


@every_method
def test_what_is_frozen_or_unused_stays(method):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = mlp(4, 6, 3), mlp(4, 3), mlp(4, 4, seed=1)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.frozen(x))

    net, opt = make(method, Branches(), momentum="auto", damping=always())
    before = copy.deepcopy(net.state_dict())
    train(net, opt, range(3))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("used")), name
    net.frozen.requires_grad_(True)
    net.used[0].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    train(net, opt, range(3, 6))
    moved = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert moved == {"used.0.weight", "used.2.weight", "used.2.bias", "frozen.0.weight",
                     "frozen.0.bias"}  # fmt: skip


def test_a_layer_whose_bias_lost_its_gradient_is_stepped_without():
    net, opt = make(momentum="auto", damping=always(reject_every=None))
    for k in range(2):
        Closure(net, opt, k)()
        net[0].bias.grad = None
        opt.step(targets=data(k)[1])
    assert net[0].bias.grad is not None  # its natural gradient


def test_a_layer_that_natgrad_does_not_cover_takes_part():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = mlp(4, 3), nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale

    net, opt = make(net=Scaled(), lr=Auto(1.0), momentum=0.0)
    g = []
    net.scale.register_hook(lambda grad: g.append(grad.clone()))
    start = net.scale.detach().clone()
    stepped(net, opt)
    assert relative(net.scale.detach() - start, -opt.stats()["lr"] * g[0]) < 1e-12


@every_method
@pytest.mark.parametrize("lr", [0.1, Auto(1.0)], ids=["fixed", "auto"])
def test_a_parameter_of_the_loss_takes_part_too(method, lr):
    weight = nn.Parameter(torch.ones(3).double())
    net, opt = make(
        method, lr=lr, momentum=0.9, damping=always(reject_every=None), groups=[{"params": weight}]
    )
    for k in range(3):
        x, y = data(k)

        def closure(x=x, y=y) -> Tensor:
            opt.zero_grad()
            loss = F.cross_entropy(net(x) + weight, y)
            if torch.is_grad_enabled():
                loss.backward()
            return loss

        before = weight.detach().clone()
        opt.step(closure)
        assert not torch.equal(weight, before)
        assert isfinite(opt.stats()["reduction_ratio"])


@every_blockwise
@every_lr
@pytest.mark.parametrize("damping", [0.1, always()], ids=["number", "adapted"])
def test_fused_layers_make_the_same_steps(method, lr, damping):
    ends = []
    for fused in (False, True):
        net, opt = make(
            method, lr=lr, damping=copy.deepcopy(damping), fused=fused, stats_every=2,
            refresh_every=4,
        )  # fmt: skip
        train(net, opt, range(7))
        ends.append((weights(net), opt.stats()))
    assert relative(ends[1][0], ends[0][0]) < 1e-10
    found, expected = ({**figures, "kl": 0.0} for _, figures in ends)  # NaN where never needed
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
