"""G2 and G3: what undamped K-FAC does not see, and where it is plain SGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad.damping import Constant
from tests import oracle
from tests.networks import mlp, normal, relative
from tests.tapped import LIKELIHOODS

every_seed = pytest.mark.parametrize("seed", range(4))
undamped = pytest.mark.parametrize("damping", [0.0, Constant(0.0)])


def train(net: nn.Module, x: Tensor, kind: str, damping, steps: int = 3) -> None:
    y = oracle.targets(kind, oracle.output(net, x))
    opt = natgrad.KFAC(
        net, lr=0.1, damping=damping, likelihood=LIKELIHOODS[kind], fisher="exact", kl_clip=None
    )
    for _ in range(steps):
        opt.zero_grad()
        oracle.mean_nll(kind, net(x), y).backward()
        opt.step()


def transformed(net: nn.Sequential, T: Tensor, shift: Tensor, layer: int) -> nn.Sequential:
    """The same function with ``h' = T h + shift`` as the input of one layer."""
    other = mlp(*(m.in_features for m in net[::2]), net[-1].out_features)
    other.load_state_dict(net.state_dict())
    before, after = nn.Linear(len(T), len(T)).double(), other[layer]
    with torch.no_grad():
        before.weight.copy_(T)
        before.bias.copy_(shift)
        after.weight.copy_(net[layer].weight @ torch.linalg.inv(T))
        after.bias.sub_(after.weight @ shift)
    before.requires_grad_(False)
    return nn.Sequential(*other[:layer], before, *other[layer:])


@every_seed
@undamped
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_G2_undamped_kfac_is_blind_to_affine_changes_of_a_layers_input(seed, damping, layer, kind):
    net, x = mlp(3, 4, 2, seed=seed), normal(20, 3, seed=seed)
    size = net[layer].in_features
    T = torch.eye(size, dtype=x.dtype) + 0.4 * normal(size, size, seed=seed)
    other = transformed(net, T, normal(size, seed=seed + 10), layer)
    before = oracle.output(net, x)
    assert relative(oracle.output(other, x), before) < 1e-12
    train(net, x, kind, damping)
    train(other, x, kind, damping)
    assert relative(oracle.output(net, x), before) > 0.01
    assert relative(oracle.output(other, x), oracle.output(net, x)) < 1e-9


def test_G2_plain_gradients_do_see_affine_changes():
    net, x = mlp(3, 4, 2), normal(20, 3)
    other = transformed(net, 3 * torch.eye(3, dtype=x.dtype), torch.zeros(3, dtype=x.dtype), 0)
    for each in (net, other):
        train(each, x, "gaussian", Constant(1e6), steps=1)
        for p in each.parameters():
            if p.requires_grad:
                p.data -= 1e5 * p.grad
    assert relative(oracle.output(other, x), oracle.output(net, x)) > 0.01


def whitened(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``P (x - c)`` with mean 0 and covariance I; and ``P``, ``c``."""
    c = x.mean(0)
    l, U = torch.linalg.eigh((x - c).mT @ (x - c) / len(x))
    P = U @ torch.diag(l.rsqrt()) @ U.mT
    return (x - c) @ P, P, c


@every_seed
@undamped
def test_G3_where_A_and_G_are_the_identity_kfac_is_plain_sgd(seed, damping):
    x, *_ = whitened(normal(20, 3, seed=seed))
    y = normal(20, 2, seed=seed + 10)
    nets = [mlp(3, 2, seed=seed) for _ in range(2)]
    kfac = natgrad.KFAC(
        nets[0], lr=0.1, damping=damping, likelihood=natgrad.Gaussian(), fisher="exact"
    )
    sgd = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for net, opt in zip(nets, (kfac, sgd), strict=True):
            opt.zero_grad()
            oracle.mean_nll("gaussian", net(x), y).backward()
            opt.step()
    assert relative(oracle.output(nets[0], x), oracle.output(nets[1], x)) < 1e-10


@every_seed
@undamped
def test_G3_kfac_is_plain_sgd_on_the_weights_of_whitened_inputs(seed, damping):
    x = normal(20, 3, seed=seed) @ normal(3, 3, seed=seed + 20) + 2
    y = normal(20, 2, seed=seed + 10)
    h, P, c = whitened(x)
    net, white = mlp(3, 2, seed=seed), mlp(3, 2, seed=seed)
    with torch.no_grad():  # W x + b = V P (x - c) + d
        white[0].weight.copy_(net[0].weight @ torch.linalg.inv(P))
        white[0].bias.add_(net[0].weight @ c)
    opt = natgrad.KFAC(net, lr=0.3, damping=damping, likelihood=natgrad.Gaussian(), fisher="exact")
    oracle.mean_nll("gaussian", net(x), y).backward()
    opt.step()
    oracle.mean_nll("gaussian", white(h), y).backward()
    with torch.no_grad():
        for p in white.parameters():
            p -= 0.3 * p.grad
    A = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    tolerance = max(1e-10, 50 * 2.2e-16 * float(torch.linalg.cond(A.mT @ A)))
    assert relative(net[0].weight, white[0].weight @ P) < tolerance
    assert relative(oracle.output(net, x), oracle.output(white, h)) < tolerance
