"""Steps on residuals as a whole: damping that adapts, state, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import natgrad
from natgrad import ConjugateGradient, GridSearch, PointResiduals, Spring
from natgrad.damping import LevenbergMarquardt, TraceRestricted
from natgrad.least_squares import system
from tests.least_squares.problems import (
    brute_force,
    natural,
    network,
    optimizer,
    poisson,
    regression,
    vector,
)
from tests.networks import mlp, normal, relative


def following(**kwargs: object) -> LevenbergMarquardt:
    return LevenbergMarquardt(**{"value": 1e-3, "every": 1, "reject_every": 1, **kwargs})


def test_the_reduction_ratio_is_the_losss_change_over_the_models():
    net, damping = network(2, 6, 1), following(reject_every=None)
    opt = optimizer(net, damping=damping, lr=0.7, momentum=0.5)
    for _ in range(3):
        before, (r, J) = vector(net), brute_force(net, regression(net))
        loss = opt.step(regression(net))
        delta, after = vector(net) - before, brute_force(net, regression(net))[0]
        model = r @ J @ delta + (J @ delta).square().sum() / 2
        stats = opt.stats()
        ratio = (after.square().sum() - r.square().sum()) / 2 / model
        assert stats["least_squares/reduction_ratio"] == pytest.approx(float(ratio), rel=1e-9)
        assert stats["least_squares/loss_after"] == pytest.approx(float(after.square().sum() / 2))
        assert loss == pytest.approx(float(r.square().sum() / 2))


def test_the_damping_follows_the_ratio():
    net = nn.Linear(2, 1).double()  # the model is right: the damping falls
    damping = following(decay=0.5)
    opt = optimizer(net, damping=damping)
    for _ in range(3):
        opt.step(regression(net))
    assert damping.value == pytest.approx(1e-3 / 8)


@pytest.mark.parametrize("momentum", [0.0, 0.9, Spring(0.9)])
def test_a_step_that_raises_the_loss_is_taken_back_exactly(momentum):
    net, damping = network(2, 6, 1), following(rejected=3.0, decay=1.0)
    opt = optimizer(net, damping=damping, momentum=momentum, lr=0.5)
    opt.step(regression(net))
    before, memory = vector(net), copy.deepcopy(dict(opt.state))
    opt.param_groups[0]["lr"] = 1e4
    value = damping.value
    opt.step(regression(net))
    stats = opt.stats()
    assert stats["least_squares/moved"] == 0
    assert stats["least_squares/loss_after"] > stats["least_squares/loss"]
    assert torch.equal(vector(net), before)
    assert damping.value == pytest.approx(3 * value)
    for old, new in zip(memory.values(), opt.state.values(), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_without_looking_the_same_step_stays():
    net, damping = network(2, 6, 1), following(reject_every=None)
    opt = optimizer(net, damping=damping, lr=1e4)
    before = vector(net)
    opt.step(regression(net))
    assert relative(vector(net), before) > 1


OPTIONS = [
    {"momentum": 0.9},
    {"momentum": Spring(0.9)},
    {"line_search": GridSearch()},
    {"solver": ConjugateGradient(iterations=5, warm_start=True)},
    {"line_search": GridSearch(), "geodesic": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_resuming_is_bit_exact(options, tmp_path):
    def made(net: nn.Module) -> natgrad.ExactNGD:
        return optimizer(net, damping=following(decay=0.7), lr=0.3, **options)

    net, other = network(2, 6, 1), network(2, 6, 1, seed=9)
    opt, resumed = made(net), made(other)
    for _ in range(3):
        opt.step(poisson())
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(state["net"])
    resumed.load_state_dict(state["opt"])
    for _ in range(3):
        assert opt.step(poisson()) == resumed.step(poisson())
    assert torch.equal(vector(other), vector(net))
    assert opt.stats()["least_squares/step"] == 6


def test_a_fresh_start_differs_from_a_resumed_one():
    net, other = network(2, 6, 1), network(2, 6, 1)
    opts = [optimizer(each, momentum=Spring(0.9), lr=0.3) for each in (net, other)]
    opts[0].step(poisson())
    other.load_state_dict(net.state_dict())
    for opt in opts:
        opt.step(poisson())
    assert relative(vector(other), vector(net)) > 1e-6


def test_single_precision_solved_in_double():
    (net, single), damping = (network(), network().float()), 1e-4
    x, y = normal(30, 2, seed=1), normal(30, 1, seed=2)
    optimizer(net, damping=damping).step(PointResiduals(lambda u, x, y: u(x) - y, x, y))
    part = PointResiduals(lambda u, x, y: u(x) - y, x.float(), y.float())
    opt = optimizer(single, damping=damping, dtype=torch.float64)
    opt.step(part)
    assert single[0].weight.dtype == torch.float32
    assert relative(natural(single).double(), natural(net)) < 1e-4
    assert opt.least_squares.linearizer.written_out(
        [part], list(single.parameters()), None
    ).J.dtype == (torch.float64)


def test_a_jacobian_beyond_the_limit_is_not_formed(monkeypatch):
    net = network()
    opt = optimizer(net)
    opt.step(poisson())
    assert opt.least_squares.figures.solver == "woodbury"
    monkeypatch.setattr("natgrad.least_squares.engine.LIMIT_BYTES", 8 * 21 * 10 - 1)
    twin = network()
    twin.load_state_dict(network().state_dict())
    free = optimizer(twin)
    free.step(poisson())
    assert free.least_squares.figures.solver == "cg"
    assert free.stats()["least_squares/iterations"] > 0
    assert relative(vector(twin), vector(network())) > 1e-3
    assert system.LIMIT_BYTES == 2**31


def test_conjugate_gradients_stop_where_they_are_told():
    found = []
    for iterations in (1, 500):
        net = network()
        opt = optimizer(net, solver=ConjugateGradient(1e-12, iterations), damping=1e-6)
        opt.step(poisson())
        found.append(natural(net))
        assert opt.stats()["least_squares/iterations"] <= iterations
    assert relative(found[0], found[1]) > 1e-2


def test_all_parameters_take_part_whatever_they_are_in():
    class Curve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.0, -0.5, 0.0]).double())

        def forward(self, x):
            return self.a[0] * torch.exp(self.a[1] * x) + self.a[2]

    net, x = Curve(), torch.linspace(0, 1, 20).double()
    y = 2 * torch.exp(-x) + 0.5
    opt = optimizer(net, damping=0.0, line_search=GridSearch())
    for _ in range(15):
        opt.step(lambda: net(x) - y)
    assert relative(net.a.detach(), torch.tensor([2.0, -1.0, 0.5]).double()) < 1e-8
    net(x).sum().backward()
    with pytest.raises(ValueError, match="for residuals"):
        opt.step()
    with pytest.raises(ValueError, match="no layer to precondition"):
        optimizer(net).step()


def test_frozen_and_shared_parameters():
    net = network(2, 2, 2)
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    r, _ = brute_force_shared(net)
    opt = optimizer(net)
    assert opt.step(lambda: net(normal(5, 2)) - 1) == pytest.approx(r)
    assert net[0].bias.grad is None
    assert opt.stats()["least_squares/parameters"] == 6


def brute_force_shared(net: nn.Module) -> tuple[float, None]:
    return float((net(normal(5, 2)) - 1).detach().square().mean() / 2), None


def test_a_damping_that_needs_the_trace_gets_it_or_says_so():
    net = network()
    _, J = brute_force(net, poisson())
    opt = optimizer(net, damping=TraceRestricted(1e-9))
    opt.step(poisson())
    expected = float(J.square().sum()) / 21
    assert opt.stats()["least_squares/damping"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs the trace"):
        optimizer(net, damping=TraceRestricted(1e-9), solver="cg").step(poisson())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_skipped_whole(bad):
    net = network()
    opt, before = optimizer(net, momentum=0.9), vector(net)
    loss = opt.step(lambda: net(normal(4, 2)) * bad)
    assert loss != loss or loss == float("inf")
    assert torch.equal(vector(net), before)
    assert opt.stats()["least_squares/skipped"] == 1
    assert not opt.state
    raising = optimizer(net, nonfinite="raise")
    with pytest.raises(FloatingPointError, match="residuals"):
        raising.step(lambda: net(normal(4, 2)) * bad)


def test_what_is_heard_of_the_model_between_steps_does_not_pile_up():
    net = mlp(2, 6, 1)
    x = normal(9, 2, seed=1)
    opt = natgrad.ExactNGD(net, lr=1.0, momentum=0.0, damping=1e-3, likelihood=natgrad.Gaussian())
    for _ in range(3):
        opt.step((natgrad.PointResiduals(lambda u, x: u(x), x),))
        assert not list(opt.preconditioner.curvature.waiting())
        inputs = x.clone().requires_grad_()
        torch.autograd.grad(net(inputs).sum(), inputs, create_graph=True)
    assert list(opt.preconditioner.curvature.waiting())  # it does hear: else nothing is shown
