"""What holds exactly of steps on residuals, and what must not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Gaussian, PointResiduals, Spring
from natgrad.least_squares import residuals as given
from natgrad.least_squares.system import Linearizer
from tests.least_squares.problems import (
    brute_force,
    natural,
    network,
    optimizer,
    poisson,
    poisson_by_autograd,
    regression,
    vector,
)
from tests.networks import normal, relative

WAYS = ("dense", "woodbury", natgrad.ConjugateGradient(tolerance=1e-14, iterations=500))


def damped(r: Tensor, J: Tensor, ridge: float) -> Tensor:
    return torch.linalg.solve(J.mT @ J + ridge * torch.eye(J.shape[1]).to(J), J.mT @ r)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_every_way_to_the_jacobian_is_the_jacobian(reduction, chunk):
    net = network(2, 3, 1)  # 13 parameters
    for case in (regression(net, 20), regression(net, 5), poisson(), poisson_by_autograd(net)):
        r, J = brute_force(net, case, reduction)
        linearizer = Linearizer(net, reduction, None, chunk)
        parts, parameters = given.listed(case), list(net.parameters())
        written = linearizer.written_out(parts, parameters, None)
        free = linearizer.matrix_free(parts, parameters)
        assert relative(written.r, r) < 1e-12
        assert relative(written.J, J) < 1e-12
        assert relative(free.r, r) < 1e-12
        columns = torch.stack([free.product(e) for e in torch.eye(J.shape[1]).to(J)], 1)
        rows = torch.stack([free.transposed(e) for e in torch.eye(len(J)).to(J)])
        assert relative(columns, J) < 1e-12
        assert relative(rows, J) < 1e-12
        assert linearizer.value(parts) == pytest.approx(float(r.square().sum() / 2), rel=1e-12)


@pytest.mark.parametrize("way", WAYS, ids=["dense", "woodbury", "cg"])
@pytest.mark.parametrize("n", [5, 40])
def test_every_solver_is_the_damped_inverse(way, n):
    net = network()
    residuals = regression(net, n)
    r, J = brute_force(net, residuals)
    opt = optimizer(net, solver=way, damping=1e-3)
    opt.step(residuals)
    assert relative(natural(net), damped(r, J, 1e-3)) < 1e-9


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_and_its_gradient_are_those_of_the_parts(reduction):
    net, start = network(), network()
    opt = optimizer(net, damping=1e6, lr=1.0, reduction=reduction)
    expected = natgrad.least_squares.loss(start, poisson(), reduction)
    expected.backward()
    assert opt.step(poisson()) == pytest.approx(expected.item(), rel=1e-12)
    plain = torch.cat([p.grad.flatten() for p in start.parameters()])
    assert relative(1e6 * natural(net), plain) < 1e-4  # damping alone is gradient descent


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("damping", [0.0, 1e-13])
def test_linear_least_squares_is_solved_in_one_step(n, damping):
    net, x, y = network(4, 2), normal(n, 4), normal(n, 2, seed=1)
    optimizer(net, damping=damping).step(PointResiduals(lambda u, x, y: u(x) - y, x, y))
    rows = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    best = rows @ (torch.linalg.pinv(rows) @ y)
    assert relative(net(x).detach(), best) < 1e-9


def test_a_linear_equation_is_not_solved_by_a_damped_step():
    net, x, y = network(4, 2), normal(20, 4), normal(20, 2, seed=1)
    optimizer(net, damping=1.0).step(lambda: net(x) - y)
    rows = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    assert relative(net(x).detach(), rows @ (torch.linalg.pinv(rows) @ y)) > 0.1


@pytest.mark.parametrize(("n", "closer"), [(30, True), (30, False)])
def test_undamped_steps_do_not_depend_on_coordinates(n, closer):
    """``w = B phi`` (V:G1); with damping they do."""
    B = normal(13, 13, seed=5) + 3 * torch.eye(13).double()
    net, w = network(2, 3, 1), vector(network(2, 3, 1))

    class Coordinates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Parameter(torch.linalg.solve(B, w))
            self.inner = network(2, 3, 1).requires_grad_(False)
            self.shapes = [p.shape for p in self.inner.parameters()]

        def forward(self, x: Tensor) -> Tensor:
            parts = torch.split(B @ self.phi, [s.numel() for s in self.shapes])
            W, b, V, c = (part.reshape(s) for part, s in zip(parts, self.shapes, strict=True))
            return torch.tanh(x @ W.mT + b) @ V.mT + c

    other = Coordinates()
    damping = 0.0 if closer else 0.1
    x, y = normal(n, 2, seed=1), normal(n, 1, seed=2)
    optimizer(net, damping=damping, lr=0.5).step(lambda: net(x) - y)
    optimizer(other, damping=damping, lr=0.5).step(lambda: other(x) - y)
    away = relative(B @ other.phi.detach(), vector(net))
    assert away < 1e-7 if closer else away > 1e-3


def test_the_step_is_that_of_the_gaussian_likelihood():
    """The same network, the same batch, by residuals and by a backward pass."""
    nets = [network(2, 4, 3) for _ in range(3)]
    x, y = normal(9, 2), normal(9, 3, seed=1)
    opts = [
        natgrad.ExactNGD(net, lr=0.5, momentum=0.9, damping=1e-2, likelihood=Gaussian())
        for net in nets
    ]
    for _ in range(3):
        opts[0].zero_grad()
        (0.5 * (nets[0](x) - y).square().sum(1).mean()).backward()
        opts[0].step()
        opts[1].step(lambda: (nets[1](x) - y) * 3**0.5)  # a mean over 27, not over 9 examples
        opts[2].step(PointResiduals(lambda u, x, y: u(x) - y, x, y, weight=3.0))
    assert relative(vector(nets[1]), vector(nets[0])) < 1e-10
    assert relative(vector(nets[2]), vector(nets[0])) < 1e-10
    assert relative(vector(nets[0]), vector(network(2, 4, 3))) > 1e-2


@pytest.mark.parametrize("way", WAYS, ids=["dense", "woodbury", "cg"])
def test_spring_minimises_its_least_squares_problem(way):
    """``phi_k = argmin |J x - r|^2 + damping |x - decay phi_{k-1}|^2``."""
    net, damping, decay = network(), 1e-2, 0.8
    opt = optimizer(net, momentum=Spring(decay), damping=damping, lr=0.1, solver=way)
    last = torch.zeros(21).double()
    for k in range(3):
        residuals = regression(net, 6 + k)
        r, J = brute_force(net, residuals)
        before = vector(net)
        opt.step(residuals)
        phi = natural(net)
        slope = J.mT @ (J @ phi - r) + damping * (phi - decay * last)
        assert slope.norm() < 1e-9 * (J.mT @ r).norm()
        assert relative(before - vector(net), 0.1 * phi) < 1e-9
        if k:
            assert relative(phi, damped(r, J, damping)) > 1e-2  # not the plain step
        last = phi


def test_spring_without_decay_is_the_plain_step():
    found = []
    for momentum in (0.0, Spring(0.0)):
        net = network()
        opt = optimizer(net, momentum=momentum)
        for _ in range(3):
            opt.step(regression(net))
        found.append(vector(net))
    assert relative(found[1], found[0]) < 1e-12


def test_spring_stays_in_the_rows_it_has_seen():
    """Kaczmarz: with no damping left, each step solves its batch exactly and moves least."""
    net, x = network(6, 1), normal(8, 6)
    truth = network(6, 1, seed=3)
    y = truth(x).detach()
    opt = optimizer(net, momentum=Spring(0.5), damping=1e-14)
    for k in range(4):
        rows, goal = x[2 * k : 2 * k + 2], y[2 * k : 2 * k + 2]
        opt.step(lambda rows=rows, goal=goal: net(rows) - goal)
        assert (net(rows) - goal).abs().max() < 1e-6


def bent(net: nn.Module, residuals, damping: float) -> Tensor:
    """``delta + a / 2`` with the second derivative along ``delta`` taken exactly."""
    r, J = brute_force(net, residuals)
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    x, y = normal(7, 2, seed=1), normal(7, 1, seed=2)

    def of(w: Tensor) -> Tensor:
        parts = torch.split(w, [s.numel() for s in shapes])
        given_ = {n: part.reshape(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return (torch.func.functional_call(net, given_, (x,)) - y).flatten() / 7**0.5

    w, delta = vector(net), -damped(r, J, damping)

    def slope(w: Tensor) -> Tensor:
        return torch.func.jvp(of, (w,), (delta,))[1]

    second = torch.func.jvp(slope, (w,), (delta,))[1]
    return w + delta - damped(second, J, damping) / 2


def test_a_bent_step_follows_the_second_derivative():
    net, other = network(), network()
    expected = bent(net, regression(net), 1.0)
    optimizer(net, damping=1.0, geodesic=True).step(regression(net))
    optimizer(other, damping=1.0).step(regression(other))
    away = (vector(net) - expected).norm() / (vector(other) - expected).norm()
    assert away < 1e-2  # differences are of second order; a straight step misses all of the bend


def steps_along_the_valley(**options: object) -> int:
    """Steps to the end of Rosenbrock's curved valley."""
    at = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        at.weight.copy_(torch.tensor([[-1.2], [1.0]]))

    def residuals() -> Tensor:
        x, y = at.weight[:, 0]
        return torch.stack([100 * (y - x**2), 1 - x])

    opt = optimizer(at, damping=1e-9, line_search=natgrad.GridSearch(), **options)
    return next(k for k in range(1000) if opt.step(residuals) < 1e-12)


def test_bent_steps_follow_a_curved_valley():
    assert steps_along_the_valley(geodesic=True) < 0.5 * steps_along_the_valley()


def test_a_bend_of_linear_residuals_is_none():
    found = []
    for geodesic in (True, False):
        net, x, y = network(4, 2), normal(20, 4), normal(20, 2, seed=1)
        optimizer(net, damping=0.1, geodesic=geodesic).step(lambda net=net, x=x, y=y: net(x) - y)
        found.append(vector(net))
    assert relative(found[0], found[1]) < 1e-9
