"""Learning rate and momentum of steps on residuals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Auto, Gaussian
from tests.least_squares.problems import brute_force
from tests.loop.loops import weights
from tests.networks import mlp, normal, relative


def regression(net: nn.Module, n: int = 20):
    x, y = normal(n, 4, seed=1), normal(n, 3, seed=2)
    return lambda: net(x) - y


def optimizer(net: nn.Module, **kwargs) -> natgrad.ExactNGD:
    given = {"lr": "auto", "momentum": "auto", "damping": 0.1, "likelihood": Gaussian()}
    return natgrad.ExactNGD(net, **{**given, **kwargs})


def natural(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def best(V: Tensor, r: Tensor, J: Tensor, damping: float, start: Tensor | float = 0.0) -> Tensor:
    """What minimises the damped model over ``start + span V``."""
    F = J.mT @ J + damping * torch.eye(J.shape[1]).double()
    move = torch.zeros(J.shape[1]).double() + start
    w = torch.linalg.solve(V.mT @ F @ V, -V.mT @ (J.mT @ r + F @ move))
    return move + V @ w


def test_the_exact_natural_gradient_is_the_best_step_already():
    net = mlp(4, 6, 3)
    opt = optimizer(net)
    for _ in range(3):
        start = weights(net)
        opt.step(regression(net))
        assert relative(weights(net) - start, -natural(net)) < 1e-9
        assert opt.stats()["least_squares/lr"] == pytest.approx(1.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_step_is_the_best_of_its_span(reduction):
    net = mlp(4, 6, 3)  # two iterations are not the solution, and the last step can help
    solver = natgrad.ConjugateGradient(iterations=2)
    opt, before = optimizer(net, reduction=reduction, solver=solver), None
    for _ in range(3):
        r, J = brute_force(net, regression(net), reduction)
        start = weights(net)
        opt.step(regression(net))
        V = torch.stack([natural(net)] + ([before] if before is not None else []), 1)
        moved = weights(net) - start
        assert relative(moved, best(V, r, J, 0.1)) < 1e-9
        assert before is None or relative(moved, best(V[:, :1], r, J, 0.1)) > 1e-3
        before = moved


def test_one_of_the_two_may_be_given():
    for given in ({"lr": 0.3}, {"momentum": 0.5}):
        net = mlp(4, 6, 3)
        solver = natgrad.ConjugateGradient(iterations=2)
        opt, before = (
            optimizer(net, solver=solver, **given),
            torch.zeros(len(weights(net))).double(),
        )
        for k in range(2):
            r, J = brute_force(net, regression(net))
            start = weights(net)
            opt.step(regression(net))
            U, moved = natural(net), weights(net) - start
            fixed, free = (-0.3 * U, before) if "lr" in given else (0.5 * before, U)
            wanted = best(free[:, None], r, J, 0.1, fixed) if bool(free.any()) else fixed
            assert relative(moved, wanted) < 1e-9, k
            before = moved


def test_linear_least_squares_are_solved_in_one_step_from_any_damping_that_is_small():
    net = nn.Linear(4, 3).double()
    residuals = regression(net)
    optimizer(net, damping=1e-13).step(residuals)
    r, J = brute_force(net, residuals)
    assert float((J.mT @ r).norm()) < 1e-11


def test_groups_multiply_it_and_resuming_is_exact():
    net, half = mlp(4, 6, 3), mlp(4, 6, 3)
    whole, opt = optimizer(net), optimizer(half)
    opt.param_groups[0]["lr"] = 0.5
    start = weights(net)
    whole.step(regression(net))
    opt.step(regression(half))
    assert relative(weights(half) - start, (weights(net) - start) / 2) < 1e-12
    other = optimizer(mlp(4, 6, 3), lr=Auto())
    other.preconditioner.model.load_state_dict(net.state_dict())
    other.load_state_dict(whole.state_dict())
    for each in (whole, other):
        each.step(regression(each.preconditioner.model))
    assert torch.equal(weights(other.preconditioner.model), weights(net))
    assert whole.stats()["least_squares/lr"] > 0
