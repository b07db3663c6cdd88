"""The quadratic model of a step, and the reduction ratio."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.quadratic import Quadratic
from tests.networks import mlp, normal, relative

OPTIMIZERS = (natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC, natgrad.ExactNGD)


def closure_of(opt: torch.optim.Optimizer, net: nn.Module, x: Tensor, y: Tensor):
    def closure() -> Tensor:
        opt.zero_grad()
        loss = 0.5 * (net(x) - y).square().sum(1).mean()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("Opt", OPTIMIZERS)
def test_on_a_quadratic_loss_the_ratio_is_one_where_the_block_is_exact(Opt, momentum):
    net, x, y = mlp(4, 3), normal(16, 4), normal(16, 3, seed=1)
    opt = Opt(
        net, lr=0.1, momentum=momentum, likelihood=Gaussian(), fisher="exact", decay=0.0,
        reduction_every=1,
    )  # fmt: skip
    assert math.isnan(opt.stats()["reduction_ratio"])
    for _ in range(3):
        opt.step(closure_of(opt, net, x, y))
        assert opt.stats()["reduction_ratio"] == pytest.approx(1, rel=1e-9)


def test_the_models_change_is_that_of_the_dense_fisher():
    net, x = mlp(4, 6, 3), normal(8, 4)
    opt = natgrad.ExactNGD(net, lr=0.3, likelihood=Categorical(), momentum=0.0, reduction_every=1)
    dense = natgrad.fisher(net, x, Categorical(), structure="dense").dense()
    losses: list[float] = []

    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
        loss.backward()
        if not losses:
            gradients.extend(p.grad.flatten().clone() for p in net.parameters())
        losses.append(loss.item())
        return loss

    gradients: list[Tensor] = []
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    opt.step(closure)
    delta = nn.utils.parameters_to_vector(net.parameters()).detach() - before
    foretold = torch.cat(gradients) @ delta + delta @ dense @ delta / 2
    ratio = (losses[1] - losses[0]) / float(foretold)
    assert opt.stats()["reduction_ratio"] == pytest.approx(ratio, rel=1e-9)
    assert ratio != pytest.approx(1, abs=0.01)


def test_measuring_changes_nothing_else():
    finals = []
    for every in (None, 2):
        net, x, y = mlp(4, 6, 3), normal(16, 4), normal(16, 3, seed=1)
        opt = natgrad.TEKFAC(net, lr=0.1, likelihood=Gaussian(), reduction_every=every, seed=5)
        for _ in range(5):
            opt.step(closure_of(opt, net, x, y))
        finals.append([nn.utils.parameters_to_vector(net.parameters()), net[0].weight.grad])
    assert relative(finals[0][0], finals[1][0]) == 0
    assert torch.equal(finals[0][1], finals[1][1])


def test_uncovered_parameters_enter_with_their_gradient():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = mlp(4, 3), nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale

    net, x, y = Scaled(), normal(16, 4), normal(16, 3, seed=1)
    opt = natgrad.KFAC(net, lr=1e-5, momentum=0.0, likelihood=Gaussian(), reduction_every=1)
    opt.step(closure_of(opt, net, x, y))
    assert opt.stats()["reduction_ratio"] == pytest.approx(1, abs=1e-3)


def test_the_interval_must_make_sense():
    with pytest.raises(ValueError, match="reduction_every must be at least 1 or None, got 0"):
        natgrad.KFAC(mlp(4, 3), lr=0.1, reduction_every=0)


def small(*b: float) -> Quadratic:
    A, D = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.eye(2)
    return Quadratic(A.double(), D.double(), torch.tensor(b).double())


def test_the_minimiser_with_and_without_a_given_coefficient():
    found = small(1.0, -2.0).minimiser(0.5, [None, None])
    expected = torch.linalg.solve(torch.tensor([[2.5, 1.0], [1.0, 3.5]]), torch.tensor([-1.0, 2.0]))
    assert found == pytest.approx(expected.tolist())
    assert small(1.0, -2.0).minimiser(0.5, [0.4, None]) == pytest.approx([0.4, 1.6 / 3.5])
    assert small(1.0, -2.0).minimiser(0.5, [0.4, 0.1]) == pytest.approx([0.4, 0.1])
    assert small(1.0, -2.0).change([0.4, 0.1]) == pytest.approx(0.2 + 0.175 + 0.04)


def test_directions_without_length_or_curvature_and_what_is_not_finite_get_nothing():
    flat = Quadratic(torch.diag(torch.tensor([2.0, 0.0])).double(), torch.zeros(2, 2).double(),
                     torch.tensor([-2.0, 1.0]).double())  # fmt: skip
    assert flat.minimiser(0.1, [None, None]) == pytest.approx([1, 0])
    broken = Quadratic(small(1, 1).A * math.inf, small(1, 1).D, small(1, 1).b)
    assert broken.minimiser(0.1, [None, 0.9]) == [0, 0.9]
