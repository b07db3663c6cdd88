"""The Poisson equation as a recipe: one loss in two forms, its data, its picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from natgrad.lab.data import Pair
from natgrad.lab.optimizers import complete
from natgrad.lab.poisson import RELATIVE_ERROR, Poisson, draw, network, points, source, u_exact
from natgrad.lab.recipe import load
from natgrad.lab.training import Budget, Run, Training
from natgrad.least_squares import laplacian, loss


def test_the_source_is_that_of_the_solution() -> None:
    x = torch.rand(5, 2, dtype=torch.float64)
    curved = torch.func.vmap(lambda x: laplacian(u_exact, x))(x)
    assert torch.allclose(-curved, source(x))


def test_both_forms_of_the_loss_agree() -> None:
    torch.manual_seed(0)
    net, objective = network((5, 4)), Poisson()
    batch = points(4).load(None).train
    expected = objective.loss(net, batch)
    found = loss(net, objective.residuals(batch))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    grads = [torch.autograd.grad(value, list(net.parameters())) for value in (expected, found)]
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_the_metric_is_relative() -> None:
    u = torch.tensor([[3.0], [4.0]])
    assert RELATIVE_ERROR.of(1.1 * u, u) == pytest.approx(0.1)
    splits = points(3).load(None)
    assert splits.sizes() == {"train": 9 + 12, "validation": 1000 + 100, "test": 65**2}
    assert Pair(splits.test.inputs, splits.test.targets).targets.dtype == torch.float64


@pytest.mark.parametrize("name", ["poisson-pinn", "poisson-pinn-wide"])
def test_a_few_hundred_and_some_ten_thousand_parameters(name: str) -> None:
    count = sum(p.numel() for p in load(name).network().parameters())
    assert count == {"poisson-pinn": 501, "poisson-pinn-wide": 10_501}[name]


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "exactngd"])
def test_every_optimizer_lowers_the_loss(optimizer: str) -> None:
    small = dataclasses.replace(load("poisson-pinn"), network=lambda: network((6,)), data=points(5))
    settings = complete(optimizer, small.settings[optimizer])
    training = Training(Run(small, optimizer, settings, 0, Budget(epochs=6)), small.data.load(None))
    first = training.evaluate()
    assert training.due(last=True) is False
    for _ in range(6):
        training.step()
    assert training.due(last=False)
    assert training.evaluate()["train_loss"] < first["train_loss"]
    rates = [group["lr"] for group in training.optimizer.param_groups]
    scheduled = optimizer == "adam"
    assert (rates[0] < training.rates[0]) is scheduled


def test_the_picture(tmp_path: Path) -> None:
    draw({"adam": network((3,)), "exactngd": network((3,))}, tmp_path / "u")
    assert (tmp_path / "u.pdf").read_bytes()[:4] == b"%PDF"
    assert (tmp_path / "u.png").read_bytes()[:4] == b"\x89PNG"
