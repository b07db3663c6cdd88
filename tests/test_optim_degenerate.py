"""All optimizers at the edge of what is sensible: finite, and moving where there is a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.damping import Constant, TraceRestricted
from tests.brute_force import METHODS
from tests.networks import mlp, normal

every_method = pytest.mark.parametrize("method", METHODS)
DAMPINGS = {
    "number": 1e-3, "eigenvalues": Constant(1e-3), "trace": TraceRestricted(1e-2, "paper"),
}  # fmt: skip
every_damping = pytest.mark.parametrize("damping", DAMPINGS)
FISHERS = {
    "exact": {"likelihood": Categorical(), "fisher": "exact"},
    "sampled": {"likelihood": Categorical(), "fisher": "sampled"},
    "empirical": {"likelihood": None},
}
INPUTS = {
    "zeros": torch.zeros(8, 4),
    "constant": torch.full((8, 4), 3.0),
    "a constant column": torch.cat([normal(8, 3).float(), torch.ones(8, 1)], 1),
    "one example": normal(1, 4).float(),
    "huge": 1e6 * normal(8, 4).float(),
    "tiny": 1e-20 * normal(8, 4).float(),
    "identical": normal(1, 4).float().repeat(8, 1),
}


def steps(method: str, damping: str, net: nn.Module, x: Tensor, count: int = 3, **kwargs):
    """Trains; every parameter must stay finite, and no step be skipped."""
    opt = getattr(natgrad, method)(net, lr=1e-3, damping=DAMPINGS[damping], **kwargs)
    for _ in range(count):
        opt.zero_grad()
        f = net(x)
        F.cross_entropy(f, torch.zeros(len(f), dtype=torch.long)).backward()
        opt.step()
        assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert opt.stats()["skipped"] == 0
    return opt


@every_method
@every_damping
@pytest.mark.parametrize("name", INPUTS)
def test_degenerate_inputs_keep_all_parameters_finite_and_the_head_moving(method, damping, name):
    for fisher in FISHERS.values():
        net = mlp(4, 6, 3).float()
        before = net[2].bias.detach().clone()
        steps(method, damping, net, INPUTS[name], **fisher)
        assert not torch.equal(net[2].bias, before)


@every_method
@every_damping
def test_dead_units_stay_and_the_others_move(method, damping):
    net = mlp(4, 6, 3, activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias[:4] = -100.0
    before = net[0].weight.detach().clone()
    steps(method, damping, net, normal(8, 4), **FISHERS["exact"])
    assert torch.allclose(net[0].weight[:4], before[:4], atol=1e-11, rtol=0)
    assert not torch.allclose(net[0].weight[4:], before[4:], atol=1e-7, rtol=0)


@every_method
@every_damping
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dead_layer_stays_and_the_head_moves(method, damping, dtype):
    """Factors that are zero altogether."""
    net = mlp(4, 6, 3, activation=nn.ReLU).to(dtype)
    with torch.no_grad():
        net[0].bias[:] = -100.0
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for fisher in FISHERS.values():
        steps(method, damping, net, normal(8, 4).to(dtype), **fisher)
    assert torch.allclose(net[0].weight, before["0.weight"], atol=1e-6, rtol=0)
    assert not torch.equal(net[2].bias, before["2.bias"])


@every_method
@every_damping
def test_layers_of_one_feature_and_batches_of_one_learn(method, damping):
    for n in (1, 8):
        net, x = mlp(1, 1, 1), normal(n, 1)
        with torch.no_grad():
            start = float((net(x) - 2).square().mean())
        opt = getattr(natgrad, method)(
            net, lr=0.1, momentum=0.0, damping=DAMPINGS[damping], likelihood=Gaussian()
        )
        for _ in range(15):
            opt.zero_grad()
            loss = (net(x) - 2).square().mean() / 2
            loss.backward()
            opt.step()
        assert 2 * float(loss.detach()) < 0.5 * start


@every_method
@every_damping
def test_logits_that_are_certain_leave_everything_finite(method, damping):
    """Probabilities of exactly one, so that the Fisher matrix is exactly zero."""
    net = mlp(4, 6, 3).float()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    before = [p.detach().clone() for p in net.parameters()]
    steps(method, damping, net, normal(8, 4).float(), **FISHERS["exact"])
    for p, start in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, start)


@every_method
@every_damping
def test_zero_weights_everywhere_start_to_move(method, damping):
    net = mlp(4, 6, 3).float()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    steps(method, damping, net, normal(8, 4).float(), **FISHERS["exact"])
    assert float(net[2].bias.detach().norm()) > 0
