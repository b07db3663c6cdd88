"""Step lengths: the loss never rises, and the length is what the search says."""

from __future__ import annotations

from itertools import pairwise
from math import nan

import pytest
import torch

from natgrad import Backtracking, GridSearch
from tests.least_squares.problems import network, optimizer, poisson, regression, vector


def test_the_grid_takes_the_best_length():
    tried: list[float] = []

    def loss(t: float) -> float:
        tried.append(t)
        return (t - 0.2) ** 2

    assert GridSearch().length(loss, 0.04, -1.0) == 0.25
    assert tried == [1.0, 0.5, 0.25, 0.125]
    tried.clear()
    assert GridSearch(halvings=9, whole=True).length(loss, 0.04, -1.0) == 0.25
    assert len(tried) == 10


def test_nothing_lower_is_length_zero():
    assert GridSearch().length(lambda t: 1.0 + t, 1.0, 1.0) == 0.0
    assert GridSearch().length(lambda t: nan, 1.0, -1.0) == 0.0
    assert Backtracking().length(lambda t: 1.0 + t, 1.0, -1.0) == 0.0
    assert Backtracking().length(lambda t: 0.0, 1.0, 1.0) == 0.0  # uphill is not tried


def test_backtracking_keeps_its_share_of_the_slope():
    assert Backtracking(armijo=0.5).length(lambda t: (1 - t) ** 2, 1.0, -2.0) == 1.0
    assert Backtracking(armijo=0.6).length(lambda t: (1 - t) ** 2, 1.0, -2.0) == 0.5


@pytest.mark.parametrize("search", [GridSearch(), Backtracking()])
def test_the_loss_never_rises(search):
    net = network(2, 6, 1, seed=4)
    opt = optimizer(net, damping=1e-12, line_search=search, lr=8.0)
    losses = [opt.step(poisson()) for _ in range(12)]
    assert all(b < a for a, b in pairwise(losses))
    assert losses[-1] < 1e-2 * losses[0]
    stats = opt.stats()
    assert stats["least_squares/loss_after"] < stats["least_squares/loss"]
    assert stats["least_squares/lr"] <= 8.0


def test_without_a_search_the_same_steps_raise_it():
    net = network(2, 6, 1, seed=4)
    opt = optimizer(net, damping=1e-12, lr=8.0)
    losses = [opt.step(poisson()) for _ in range(4)]
    assert max(losses) > losses[0]


def test_parameters_stay_where_no_length_lowers_the_loss():
    net = network()
    opt = optimizer(net, line_search=GridSearch(3), damping=1.0, momentum=0.5)
    residuals = regression(net)
    opt.step(residuals)
    opt.param_groups[0]["lr"] = -0.01  # uphill
    before = vector(net)
    opt.step(residuals)
    assert torch.equal(vector(net), before)
    stats = opt.stats()
    assert stats["least_squares/moved"] == 0
    assert stats["least_squares/lr"] == 0
    opt.param_groups[0]["lr"] = 1.0
    opt.step(residuals)
    assert opt.stats()["least_squares/moved"] == 1


@pytest.mark.parametrize(
    "make", [lambda: GridSearch(-1), lambda: Backtracking(shrink=1.0), lambda: Backtracking(most=0)]
)
def test_arguments_out_of_range(make):
    with pytest.raises(ValueError, match=r"out of range|halvings"):
        make()
