"""``opt.stats()``: live figures, right and cheap enough for every step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.damping import Constant
from natgrad.optim import NaturalGradient
from tests.loop.loops import backward, every_blockwise, every_fisher, every_method, train
from tests.networks import mlp

FIGURES = {"damping", "effective_rank", "eigenvalue_min", "eigenvalue_max", "failures"}


def trained(method: type[NaturalGradient], steps: int = 3, net: nn.Module | None = None, **kwargs):
    net = net or mlp(4, 6, 3)
    opt = method(net, lr=0.1, **{"damping": 0.03, **kwargs})
    train(net, opt, range(steps))
    return net, opt


@every_blockwise
def test_its_keys_are_the_same_at_every_step(method):
    net, opt = trained(method, steps=0)
    assert set(opt.stats()) >= {"step", "skipped", "kl", "clip"}
    expected = {*opt.stats(), *(f"{layer}/{name}" for layer in "02" for name in FIGURES)}
    for k in range(3):
        train(net, opt, [k])
        assert set(opt.stats()) == expected
        assert all(type(value) is float for value in opt.stats().values())
        assert all(math.isfinite(opt.stats()[name]) for name in expected if "/" in name)


def test_those_of_the_exact_method_are_of_the_whole_model():
    _, opt = trained(natgrad.ExactNGD)
    names = {"damping", "effective_rank", "eigenvalue_min", "eigenvalue_max"}
    assert {name for name in opt.stats() if "/" in name} == {f"model/{name}" for name in names}


@every_method
@every_fisher
def test_kl_is_half_the_squared_step_in_the_damped_metric(method, fisher):
    net, opt = trained(method, steps=0, **fisher)
    assert math.isnan(opt.stats()["kl"])
    for k in range(3):
        opt.zero_grad()
        backward(net, k)
        M = [p.grad.clone() for p in net.parameters()]
        opt.step()
        products = [(p.grad * m).sum() for p, m in zip(net.parameters(), M, strict=True)]
        assert opt.stats()["kl"] == pytest.approx(0.5 * 0.1**2 * float(sum(products)), rel=1e-10)


@every_blockwise
@every_fisher
@pytest.mark.parametrize("damping", [0.03, Constant(0.02)], ids=["a number", "of the eigenvalues"])
def test_the_figures_of_a_layer_are_those_of_its_dense_matrix(method, fisher, damping):
    _, opt = trained(method, damping=damping, **fisher)
    stats = opt.stats()
    for layer in opt.preconditioner.layers:
        found = {name: stats[f"{layer.view.name}/{name}"] for name in FIGURES}
        values = torch.linalg.eigvalsh(layer.block.dense())
        rank = float(values.sum() ** 2 / values.square().sum())
        assert found["effective_rank"] == pytest.approx(rank, rel=1e-6)
        assert found["failures"] == 0
        inverse = solves(layer.block)
        extremes = 1 / torch.linalg.eigvalsh(inverse)
        assert found["eigenvalue_min"] == pytest.approx(float(extremes.amin()), rel=0.05)
        assert found["eigenvalue_max"] == pytest.approx(float(extremes.amax()), rel=0.05)
        assert found["damping"] <= found["eigenvalue_min"] * 1.05
        if isinstance(damping, Constant) and method is not natgrad.TKFAC:
            assert found["damping"] == pytest.approx(0.02)


def solves(block) -> torch.Tensor:
    """The matrix of ``solve``, column by column."""
    columns = torch.eye(block.dim, dtype=torch.float64).reshape(block.dim, *block.shape)
    return torch.stack([block.solve(M).flatten() for M in columns], 1)


@pytest.mark.parametrize("n", [8, 40], ids=["few examples", "many examples"])
def test_the_exact_methods_figures_are_those_of_the_fisher_matrix(n):
    net = mlp(4, 3)
    opt = natgrad.ExactNGD(net, lr=0.1, damping=0.02, likelihood=Gaussian())
    x = torch.randn(n, 4, dtype=torch.float64)
    net(x).square().sum().div(n).backward()
    F = natgrad.fisher(net, x, Gaussian()).dense()
    opt.step()
    values, stats = torch.linalg.eigvalsh(F), opt.stats()
    assert stats["model/damping"] == 0.02
    rank = float(values.sum() ** 2 / values.square().sum())
    assert stats["model/effective_rank"] == pytest.approx(rank, rel=1e-6)
    assert stats["model/eigenvalue_max"] == pytest.approx(float(values[-1]) + 0.02, rel=0.05)
    assert stats["model/eigenvalue_min"] == pytest.approx(float(values[0]) + 0.02, rel=0.05)


class Decompositions(TorchDispatchMode):
    """Counts decompositions and solves."""

    NAMES = ("eig", "svd", "cholesky", "qr", "inv", "lu", "solve", "lstsq")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "linalg" in name or "cholesky" in name:
            self.found += [name] * any(part in name for part in self.NAMES)
        return func(*args, **(kwargs or {}))


@every_blockwise
@pytest.mark.parametrize("damping", [0.03, Constant(0.02)], ids=["a number", "of the eigenvalues"])
def test_they_make_no_decomposition_and_change_nothing(method, damping):
    net, opt = trained(method, damping=damping, likelihood=Categorical())
    with Decompositions() as counted:
        for _ in range(3):
            first = opt.stats()
    assert counted.found == []
    assert opt.stats() == first
    with Decompositions() as counted:
        train(net, opt, [5])
    assert counted.found, "the counter counts nothing"


@every_method
def test_asking_for_them_at_every_step_leaves_the_trajectory_alone(method):
    nets = []
    for asks in (False, True):
        net, opt = trained(method, steps=0, likelihood=Categorical())
        for k in range(4):
            train(net, opt, [k])
            if asks:
                opt.stats()
                opt.report()
        nets.append(net)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)


def test_a_norm_layers_figures_need_no_decomposition_either():
    net = nn.Sequential(*mlp(4, 6), nn.LayerNorm(6).double(), *mlp(6, 3))
    _, opt = trained(natgrad.TEKFAC, net=net)
    with Decompositions() as counted:
        stats = opt.stats()
    assert counted.found == []
    layer = opt.preconditioner.layers[1]
    values = torch.linalg.eigvalsh(layer.block.dense())
    assert stats["1/effective_rank"] == pytest.approx(
        float(values.sum() ** 2 / values.square().sum())
    )


@every_method
def test_steps_and_skips_are_counted(method):
    net, opt = trained(method, steps=2)
    opt.zero_grad()
    (net(torch.ones(3, 4).double()).sum() * float("inf")).backward()
    opt.step()
    train(net, opt, [3])
    assert (opt.stats()["step"], opt.stats()["skipped"]) == (3, 1)
