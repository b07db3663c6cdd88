"""What is taken as residuals, and how what is not is answered."""

from __future__ import annotations

import pytest
import torch

import natgrad
from natgrad import PointResiduals
from natgrad.least_squares import loss
from tests.least_squares.problems import network, optimizer, poisson, regression, vector
from tests.networks import normal, relative


def test_a_closure_stays_a_closure():
    """A scalar is the loss of an ordinary step, before and after steps on residuals."""
    net, twin = network(), network()
    opts = [
        natgrad.ExactNGD(each, lr=0.5, momentum=0.0, likelihood=natgrad.Gaussian())
        for each in (net, twin)
    ]

    def closure(which: int):
        each = (net, twin)[which]
        calls.append(which)
        opts[which].zero_grad()
        value = regression(each)().square().mean() / 2
        value.backward()
        return value

    calls: list[int] = []
    for opt in opts:
        opt.step(lambda opt=opt: closure(opts.index(opt)))
    assert calls == [0, 1]  # evaluated once each
    for each, opt in zip((net, twin), opts, strict=True):
        opt.step(regression(each))
    for opt in opts:
        opt.step(lambda opt=opt: closure(opts.index(opt)))
    assert torch.equal(vector(net), vector(twin))
    assert opts[0].stats()["step"] == 2
    assert opts[0].stats()["least_squares/step"] == 1


def test_parts_may_be_mixed():
    (interior, edge), net, twin = poisson(), network(), network()
    optimizer(net).step((interior, edge))
    optimizer(twin).step([interior, lambda: twin(normal(4, 2, seed=4)) * 2**0.5])
    assert relative(vector(twin), vector(net)) < 1e-10


def test_weights_multiply_the_loss():
    net, x = network(), normal(5, 2)
    each = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0])
    whole = loss(net, PointResiduals(lambda u, x: u(x), x, weight=each))
    values = net(x)[:, 0].square()
    assert float((whole - (each * values).mean() / 2).detach()) == pytest.approx(0, abs=1e-12)
    twice = loss(net, PointResiduals(lambda u, x: u(x), x, weight=2.0), reduction="sum")
    assert float((twice - values.sum()).detach()) == pytest.approx(0, abs=1e-12)


def test_the_laplacian():
    x = normal(3)
    found = natgrad.laplacian(
        lambda x: torch.stack([x.square().sum(), x.prod(), (2 * x).sin()[0]]), x
    )
    assert torch.allclose(
        found, torch.stack([x.new_tensor(6.0), x.new_tensor(0.0), -4 * (2 * x[0]).sin()])
    )
    assert natgrad.laplacian(lambda x: (x**3).sum(), x).shape == ()


def test_the_users_random_numbers_and_modes_are_left_alone():
    net = network()
    net.eval()
    state = torch.get_rng_state()
    optimizer(net, line_search=natgrad.GridSearch()).step(poisson())
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training


def test_a_function_that_keeps_its_own_tensors_is_still_right():
    """Forward mode would not see its parameters replaced: reverse mode takes its place."""
    net, twin = network(2, 2, 1), network(2, 2, 1)
    x = normal(30, 2)
    kept = twin[0].weight
    optimizer(net).step(lambda: torch.tanh(x @ net[0].weight.mT).sum(1) - net(x)[:, 0])
    optimizer(twin).step(lambda: torch.tanh(x @ kept.mT).sum(1) - twin(x)[:, 0])
    assert relative(vector(twin), vector(net)) < 1e-10


def values(u, x):
    return u(x)


BAD = [
    (lambda net: lambda: (), ValueError, "empty"),
    (lambda net: (), ValueError, "no residuals"),
    (lambda net: lambda: net(normal(2, 2))[:0], ValueError, "are empty"),
    (lambda net: lambda: (net(normal(2, 2)).sum(),), ValueError, "must have a dimension"),
    (lambda net: lambda: net(normal(2, 2)).long(), TypeError, "floating dtype"),
    (lambda net: lambda: [1.0], TypeError, "floating dtype"),
    (lambda net: (1.0,), TypeError, "got float"),
    (lambda net: lambda: normal(3), ValueError, "do not depend"),
    (lambda net: lambda: net(normal(2, 2)).detach(), ValueError, "do not depend"),
    (lambda net: PointResiduals(lambda u, x: x, normal(3, 2)), ValueError, "do not depend"),
]


@pytest.mark.parametrize(("make", "error", "says"), BAD)
def test_what_can_not_be_residuals_is_refused(make, error, says):
    net = network()
    before = vector(net)
    with pytest.raises(error, match=says):
        optimizer(net).step(make(net))
    assert torch.equal(vector(net), before)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: PointResiduals(1, normal(2, 2)), TypeError, "takes a function"),
        (lambda: PointResiduals(lambda u, x: x), ValueError, "points"),
        (lambda: PointResiduals(lambda u, x: x, normal(0, 2)), ValueError, "points"),
        (
            lambda: PointResiduals(lambda u, x: x, normal(3, 2), normal(2)),
            ValueError,
            "equally many",
        ),
        (lambda: PointResiduals(values, normal(3, 2), weight=-1.0), ValueError, "weight"),
        (
            lambda: PointResiduals(lambda u, x: x, normal(3, 2), weight=normal(2)),
            ValueError,
            "weight",
        ),
        (lambda: natgrad.Spring(1.0), ValueError, "decay"),
        (lambda: natgrad.ConjugateGradient(iterations=0), ValueError, "out of range"),
        (lambda: optimizer(network(), solver="qr"), ValueError, "solver must be"),
        (lambda: optimizer(network(), line_search=0.5), TypeError, "line_search must be"),
        (lambda: optimizer(network(), dtype=torch.long), ValueError, "floating dtype"),
        (lambda: optimizer(network(), chunk=0), ValueError, "chunk"),
    ],
)
def test_arguments_are_checked(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_options_for_residuals_without_residuals():
    net = network()
    opt = optimizer(net, line_search=natgrad.GridSearch())
    net(normal(3, 2)).sum().backward()
    with pytest.raises(ValueError, match="are for residuals"):
        opt.step()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("natgrad.distributed.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="one process"):
        optimizer(network()).step(poisson())
