"""Statistics of the first part of every batch: those that the part alone would give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from tests.networks import mlp, normal, relative

METHODS = (natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC)


def convolutions() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
    return nn.Sequential(*layers).double()


def embedded() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 3)).double()


NETWORKS = {
    "dense": (lambda: mlp(4, 6, 3), normal(8, 4)),
    "convolutions": (convolutions, normal(8, 1, 4, 4)),
    "indices": (embedded, torch.arange(40).reshape(8, 5) % 7),
}


def stepped(method, build, x, weights, **kwargs):
    net = build()
    opt = method(net, lr=0.1, momentum=0.0, damping=0.1, likelihood=Categorical(), **kwargs)
    y = torch.arange(len(x)) % 3
    (F.cross_entropy(net(x), y, reduction="none") * weights[: len(x)]).sum().backward()
    opt.step()
    return net, opt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_statistics_are_those_of_the_part(method, network):
    build, x = NETWORKS[network]
    inside = torch.tensor([1.0, 1.0, 1.0, *[0.0] * 5], dtype=torch.float64)
    inside[3:] = 1e-300  # counted by the likelihood, without weight in the gradient
    torch.manual_seed(0)
    some, opt = stepped(method, build, x, inside, fisher="exact", stats_fraction=3 / 8)
    torch.manual_seed(0)
    alone, _ = stepped(method, build, x[:3], inside, fisher="exact")
    torch.manual_seed(0)
    whole, _ = stepped(method, build, x, inside, fisher="exact")
    pairs = list(zip(some.parameters(), alone.parameters(), whole.parameters(), strict=True))
    assert all(relative(p, q) < 1e-9 for p, q, _ in pairs)
    assert any(relative(p, w) > 1e-3 for p, _, w in pairs)
    assert {layer.rows.examples for layer in opt.preconditioner.layers} == {3}


def test_the_empirical_fisher_keeps_its_scale():
    x = normal(1, 4).repeat(8, 1)  # eight times the same example: any part says the same
    nets = []
    for fraction in (1.0, 0.25):
        torch.manual_seed(0)
        net = mlp(4, 6, 3)
        opt = natgrad.KFAC(net, lr=0.1, damping=0.1, stats_fraction=fraction)
        F.cross_entropy(net(x), torch.zeros(8, dtype=torch.long)).backward()
        opt.step()
        nets.append(net)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert relative(p, q) < 1e-9


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="stats_fraction"):
        natgrad.KFAC(mlp(4, 3), lr=0.1, damping=0.1, stats_fraction=fraction)
