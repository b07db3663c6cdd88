"""The optimizers on inputs and networks at the edge of what is sensible: all stays finite."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian
from natgrad.damping import Constant
from tests.networks import mlp, normal

EVERY_FISHER = [
    {"likelihood": Categorical(), "fisher": "exact"},
    {"likelihood": Categorical()},
    {"likelihood": None},
]
DAMPINGS = [1e-3, Constant(1e-3)]
INPUTS = {
    "zeros": torch.zeros(8, 4),
    "constant": torch.full((8, 4), 3.0),
    "one example": torch.randn(1, 4, generator=torch.Generator().manual_seed(0)),
    "huge": 1e6 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
    "tiny": 1e-20 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
    "identical": torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).repeat(8, 1),
}


def finite(net: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in net.parameters())


def steps(net: nn.Module, x: Tensor, count: int = 4, loss=None, **kwargs) -> natgrad.KFAC:
    opt = natgrad.KFAC(net, lr=1e-3, **kwargs)
    for _ in range(count):
        opt.zero_grad()
        f = net(x)
        target = torch.zeros(f.shape[:-1], dtype=torch.long)
        (loss(f) if loss else F.cross_entropy(f, target)).backward()
        opt.step()
    return opt


@pytest.mark.parametrize("fisher", EVERY_FISHER, ids=["exact", "sampled", "empirical"])
@pytest.mark.parametrize("damping", DAMPINGS, ids=["factored", "eigenvalues"])
@pytest.mark.parametrize("name", INPUTS)
def test_degenerate_inputs_keep_all_parameters_finite_and_moving(name, damping, fisher):
    net = mlp(4, 6, 3).float()
    before = [p.detach().clone() for p in net.parameters()]
    opt = steps(net, INPUTS[name], damping=damping, **fisher)
    assert finite(net)
    assert opt.preconditioner.skipped == 0
    assert not torch.equal(net[2].bias, before[-1])


@pytest.mark.parametrize("damping", DAMPINGS, ids=["factored", "eigenvalues"])
def test_dead_units_stay_where_they_are(damping):
    net = mlp(4, 6, 3, activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias[:4] = -100.0
    before = net[0].weight.detach().clone()
    steps(net, normal(8, 4), damping=damping, likelihood=Categorical(), fisher="exact")
    assert finite(net)
    assert torch.allclose(net[0].weight[:4], before[:4], atol=1e-12, rtol=0)
    assert not torch.allclose(net[0].weight[4:], before[4:], atol=1e-6, rtol=0)


def test_a_layer_that_gets_no_gradient_at_all_stays_where_it_is():
    net = mlp(4, 6, 3)
    with torch.no_grad():
        net[2].weight.zero_()
    before = net[0].weight.detach().clone()
    steps(net, normal(8, 4), count=1, likelihood=Categorical(), fisher="exact")
    assert torch.equal(net[0].weight, before)
    assert finite(net)


def test_layers_of_one_feature_work():
    net = mlp(1, 1, 1)
    steps(net, normal(8, 1), likelihood=Gaussian(), loss=lambda f: f.square().mean())
    assert finite(net)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()])
def test_outputs_without_a_feature_dimension_are_one_number_per_example(likelihood):
    flat, plain = nn.Sequential(*mlp(4, 5, 1), nn.Flatten(0)), mlp(4, 5, 1)
    for net in (flat, plain):
        steps(
            net, normal(8, 4), likelihood=likelihood, fisher="exact",
            loss=lambda f: (f - 1).square().mean(),
        )  # fmt: skip
    for p, q in zip(flat.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


def test_a_layer_without_features_trains_its_neighbours():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.empty, self.head = nn.Linear(0, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.empty(x[:, :0]))

    with pytest.warns(UserWarning, match="zero-element"):
        net = Model()
    before = net.head.weight.detach().clone()
    steps(net, torch.randn(8, 4), likelihood=Categorical())
    assert not torch.equal(net.head.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fisher", EVERY_FISHER, ids=["exact", "sampled", "empirical"])
def test_half_precision_models_keep_float32_statistics(dtype, fisher):
    net = mlp(4, 6, 3).to(dtype)
    opt = steps(net, normal(8, 4).to(dtype), **fisher)
    assert finite(net)
    assert opt.preconditioner.skipped == 0
    for layer in opt.preconditioner.layers:
        for moment in layer.block.moments():
            assert moment.value.dtype == torch.float32
            assert bool(moment.weight > 0)
    assert all(p.dtype == p.grad.dtype == dtype for p in net.parameters())


def test_double_models_keep_double_statistics():
    opt = steps(mlp(4, 3), normal(8, 4), likelihood=Categorical())
    assert opt.preconditioner.layers[0].block.A.value.dtype == torch.float64


def test_parameters_that_no_layer_covers_take_plain_sgd_steps():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, h: Tensor) -> Tensor:
            return h * self.scale.sin()

    net = nn.Sequential(*mlp(4, 6), Odd(), *mlp(6, 3))
    x, y = normal(8, 4), torch.zeros(8, dtype=torch.long)
    opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical(), momentum=0.9)
    F.cross_entropy(net(x), y).backward()
    plain = [p.grad.clone() for p in net[1].parameters()]
    before = [p.detach().clone() for p in net[1].parameters()]
    opt.step()
    for p, start, grad in zip(net[1].parameters(), before, plain, strict=True):
        assert torch.allclose(p, start - 0.1 * grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_stay_and_their_neighbours_move(frozen):
    net = mlp(4, 6, 3)
    getattr(net[0], frozen).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    steps(net, normal(8, 4), likelihood=Categorical())
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (name == f"0.{frozen}")


def test_layers_may_be_called_like_methods_of_a_module_dict():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.values = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.keys(x).sigmoid() * self.values(x)

    opt = steps(Attention(), torch.randn(8, 4), likelihood=Categorical())
    assert all(bool(layer.block.ready) for layer in opt.preconditioner.layers)
