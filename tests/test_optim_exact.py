"""The exact natural gradient: its three ways to solve, and what is exact about it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian
from natgrad.curvature import joint
from natgrad.damping import Factored, TraceRestricted
from tests import oracle
from tests.brute_force import fisher_columns, per_example, solve
from tests.networks import mlp, normal, relative

LIKELIHOODS = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian()}


def data(kind: str, n: int, k: int = 0) -> tuple[Tensor, Tensor]:
    x = normal(n, 4, seed=k)
    return x, oracle.targets(kind, x[:, :3], seed=k)


def exact(net: nn.Module, kind: str = "categorical", **kwargs) -> natgrad.ExactNGD:
    kwargs = {"lr": 1.0, "momentum": 0.0, "likelihood": LIKELIHOODS[kind], **kwargs}
    return natgrad.ExactNGD(net, **kwargs)


def natural(net: nn.Module, opt: natgrad.ExactNGD, kind: str, x: Tensor, y: Tensor) -> Tensor:
    """The natural gradient that one step leaves in ``.grad``, layer by layer."""
    opt.zero_grad()
    oracle.mean_nll(kind, net(x), y).backward()
    opt.step()
    grads = {name: p.grad for name, p in net.named_parameters()}
    return torch.cat([M.flatten() for M in oracle.matrices(grads).values()])


def dense(net: nn.Module, kind: str, x: Tensor, y: Tensor, empirical: bool = False):
    """``F [P, P]`` and the gradient, layer by layer."""
    J = fisher_columns(net, x, kind, y if empirical else None)
    columns = torch.cat([part.flatten(1) for part in J.values()], 1)
    g = torch.cat([m.mean(0).flatten() for m in per_example(net, x, y, kind).values()])
    return columns.mT @ columns / len(x), g


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize(
    ("n", "damping"),
    [(40, 1e-2), (40, 1e-9), (5, 1e-2), (5, 1e-9)],
    ids=["dense", "dense, little damping", "woodbury", "singular vectors"],
)
def test_every_way_to_solve_is_the_damped_inverse(kind, n, damping):
    net, (x, y) = mlp(4, 3, 3), data(kind, n)
    matrix, g = dense(net, kind, x, y)
    found = natural(net, exact(net, kind, damping=damping), kind, x, y)
    if damping > 1e-3:
        assert relative(found, solve(matrix, g, damping)) < 1e-10
        return
    # the matrix is nearly singular: compare what comes back, and where the gradient has a range
    assert relative(matrix @ found + damping * found, g) < 1e-6
    values, V = torch.linalg.eigh(matrix)
    inside = V[:, values > 1e-9 * values.amax()]
    expected = inside.mT @ g / (values[values > 1e-9 * values.amax()] + damping)
    assert relative(inside.mT @ found, expected) < 1e-6


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_without_damping_it_is_the_pseudo_inverse(kind, n):
    net, (x, y) = mlp(4, 3, 3), data(kind, n)
    matrix, g = dense(net, kind, x, y)
    found = natural(net, exact(net, kind, damping=0.0), kind, x, y)
    expected = torch.linalg.pinv(matrix, rtol=1e-13, hermitian=True) @ g
    assert relative(found, expected) < 1e-6
    assert relative(matrix @ found, g) < 1e-9  # a gradient has no part outside of the range


@pytest.mark.parametrize("damping", [0.0, 1e-6])
def test_equal_examples_count_as_one(damping):
    """Their gradients are linearly dependent, in single precision only nearly so."""
    x, y, found = normal(1, 4), torch.zeros(4, dtype=torch.long), []
    for count, dtype in ((1, torch.float64), (4, torch.float64), (4, torch.float32)):
        net = mlp(4, 3, 3).to(dtype)
        opt = exact(net, damping=damping)
        rows = x.repeat(count, 1).to(dtype)
        found.append(natural(net, opt, "categorical", rows, y[:count]).double())
    assert relative(found[1], found[0]) < 1e-7
    assert relative(found[2], found[0]) < 1e-2


@pytest.mark.parametrize("n", [3, 20])
def test_linear_regression_is_solved_in_one_step(n):
    net, x = mlp(4, 2), normal(n, 4)
    y = normal(n, 2, seed=1)
    opt = exact(net, "gaussian", damping=0.0)
    (0.5 * F.mse_loss(net(x), y, reduction="sum") / n).backward()
    opt.step()
    rows = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    best = rows @ (torch.linalg.pinv(rows) @ y)
    assert relative(net(x).detach(), best) < 1e-10


@pytest.mark.parametrize("n", [6, 40])
def test_undamped_steps_do_not_depend_on_coordinates(n):
    """The weights ``W`` on ``x`` and ``W T^-1`` on ``T x`` (V:G1)."""
    T, (x, y) = normal(4, 4, seed=6), data("categorical", n)
    net, other = mlp(4, 3, bias=False), mlp(4, 3, bias=False)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight @ torch.linalg.inv(T))
    for each, rows in ((net, x), (other, x @ T.mT)):
        opt = exact(each, damping=0.0, lr=0.5)
        for _ in range(2):
            natural(each, opt, "categorical", rows, y)
    assert relative(other(x @ T.mT).detach(), net(x).detach()) < 1e-7
    assert relative(net(x).detach(), mlp(4, 3, bias=False)(x).detach()) > 0.1


def test_only_the_current_batch_counts():
    (net, twin), x = (mlp(4, 3, 3), mlp(4, 3, 3)), data("categorical", 12, 9)
    opt = exact(net, lr=0.1)
    for k in range(3):
        natural(net, opt, "categorical", *data("categorical", 12, k))
    twin.load_state_dict(net.state_dict())
    found = natural(net, opt, "categorical", *x)
    assert torch.equal(found, natural(twin, exact(twin, lr=0.1), "categorical", *x))


@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize(
    ("damping", "ridge"),
    [
        (Factored(0.03), lambda trace, dim: 0.03),
        (TraceRestricted(1e-3), lambda trace, dim: trace / dim),
        (TraceRestricted(1e3), lambda trace, dim: 1e3 / dim),
    ],
    ids=["factored", "trace", "floor"],
)
def test_a_damping_object_is_asked_once_for_the_whole_matrix(n, damping, ridge):
    net, (x, y) = mlp(4, 3, 3), data("categorical", n)
    matrix, g = dense(net, "categorical", x, y)
    expected = solve(matrix, g, float(ridge(matrix.trace(), len(g))))
    found = natural(net, exact(net, damping=damping), "categorical", x, y)
    assert relative(found, expected) < 1e-10


def test_too_large_a_batch_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(joint, "LIMIT_BYTES", 8 * 12 * 3 * 27 - 1)
    net = mlp(4, 3, 3)
    opt, (x, y) = exact(net), data("categorical", 12)
    with pytest.raises(ValueError, match=r"36 gradients of 27 parameters.*take smaller batches"):
        oracle.mean_nll("categorical", net(x), y).backward()
    natural(net, opt, "categorical", x[:6], y[:6])
    assert opt.stats()["step"] == 1


class Positions(nn.Module):
    """An embedding that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4).double(), mlp(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.table(torch.arange(5))).mean(1))


def test_a_layer_without_a_batch_dimension_is_named():
    net = Positions()
    opt = exact(net)
    net(normal(8, 5, 4)).square().mean().backward()
    with pytest.raises(ValueError, match=r"layer 'table' saw 1 examples of a batch of 8"):
        opt.step()


@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize("damping", [1e-2, 1e-4, 1e-7])
def test_single_precision_comes_near_double(n, damping):
    (x, y), found = data("categorical", n), []
    for dtype in (torch.float64, torch.float32):
        net = mlp(4, 3, 3).to(dtype)
        found.append(natural(net, exact(net, damping=damping), "categorical", x.to(dtype), y))
    assert found[1].dtype == torch.float32
    assert relative(found[1].double(), found[0]) < (1e-3 if damping > 1e-5 else 3e-2)


def test_fusing_is_refused():
    with pytest.raises(ValueError, match="fused must be False for the exact natural gradient"):
        exact(mlp(4, 3), fused=True)


def test_a_layer_without_gradients_yet_is_left_out_of_the_quadratic_form():
    net = mlp(4, 5, 3)
    net[0].requires_grad_(False)
    opt, (x, y) = exact(net, stats_every=3, lr=0.0), data("categorical", 12)
    for _ in range(2):
        opt.zero_grad()
        oracle.mean_nll("categorical", net(x), y).backward()
        opt.step()
        net[0].requires_grad_(True)
    joint_, delta = opt.preconditioner.curvature, normal(3, 6)
    [head] = [view for view in joint_.views if view.name == "2"]
    assert len(joint_.views) == 2
    F_head = oracle.blocks(net, x, "categorical")["2"]
    expected = delta.flatten() @ F_head @ delta.flatten()
    assert float(joint_.quadratic([(head, delta)])) == pytest.approx(float(expected), rel=1e-9)
