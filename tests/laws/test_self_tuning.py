"""Learning rate, momentum and reduction ratio against the dense Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, nan

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Auto, Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.damping import LevenbergMarquardt
from natgrad.optim import NaturalGradient
from tests import oracle
from tests.loop.loops import METHODS, every_method, named, weights
from tests.measured import reordered
from tests.networks import mlp, normal, relative
from tests.tapped import LIKELIHOODS

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
ALWAYS = {"every": 1, "reject_every": None}


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


class Step:
    """One step of an optimizer, and what the dense Fisher matrix says of it."""

    def __init__(
        self, opt: NaturalGradient, net: nn.Module, kind: str, k: int, part: int, l2: float = 0.0
    ) -> None:
        x = normal(12, 4, seed=k)
        y = oracle.targets(kind, oracle.output(net, x), seed=k)
        before = weights(net)
        self.F = reordered(net, oracle.fisher(net, x[:part], kind)).detach()
        self.F += l2 * torch.eye(len(self.F)).double()
        opt.zero_grad()
        penalty = sum(p.square().sum() for p in net.parameters()) * l2 / 2
        (oracle.mean_nll(kind, net(x), y) + penalty).backward()
        self.g = gradient(net)
        opt.step()
        self.U, self.delta = gradient(net), weights(net) - before

    def best(self, before: Tensor | None, damping: float, lr=None, momentum=None) -> list[float]:
        """``alpha`` and ``mu`` that minimise the damped model; those given stay."""
        F = self.F + damping * torch.eye(len(self.F)).double()
        free, start = [], torch.zeros_like(self.g)
        for v, given in ((-self.U, lr), (before, momentum)):
            if v is None:
                continue
            if given is None:
                free.append(v)
            else:
                start += given * v
        V = torch.stack(free, 1) if free else torch.zeros(len(self.g), 0).double()
        w = torch.linalg.solve(V.mT @ F @ V, -V.mT @ (self.g + F @ start)).tolist()
        alpha = lr if lr is not None else w.pop(0)
        if before is None:
            return [alpha, 0.0]
        return [alpha, momentum if momentum is not None else w.pop(0)]


def steps(
    opt: NaturalGradient, net: nn.Module, kind: str, fraction: float = 1.0, l2: float = 0.0
) -> Iterator[tuple[Step, Tensor | None]]:
    before = None
    for k in range(3):
        step = Step(opt, net, kind, k, ceil(12 * fraction), l2)
        yield step, before
        before = step.delta


@every_method
@every_kind
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_learning_rate_and_momentum_minimise_the_dense_model(method, kind, fraction):
    net = mlp(4, 5, 3)
    opt = method(
        net, lr=Auto(fraction), momentum="auto", damping=0.05, likelihood=LIKELIHOODS[kind]
    )
    for step, before in steps(opt, net, kind, fraction):
        alpha, mu = step.best(before, 0.05)
        assert opt.stats()["lr"] == pytest.approx(alpha, rel=1e-8)
        assert opt.stats()["momentum"] == pytest.approx(mu, rel=1e-8, abs=1e-12)
        assert relative(-alpha * step.U + mu * (0 if before is None else before), step.delta) < 1e-9
        if method is natgrad.ExactNGD and fraction == 1:
            assert (alpha, mu) == pytest.approx((1, 0), abs=1e-8)
            continue
        assert alpha != pytest.approx(step.best(before, 0.0)[0], rel=1e-4)  # the damping counts
        if before is not None:
            assert mu != 0
            assert alpha != pytest.approx(step.best(None, 0.05)[0], rel=1e-6)


def parts_of(net: nn.Module, per: str) -> list[list[int]]:
    """Numbers of the parameters that share a rate: layers, or the output layer and the rest."""
    return {"layer": [[0, 1], [2, 3], [4, 5]], "group": [[4, 5], [0, 1, 2, 3]]}[per]


@every_method
@every_kind
@pytest.mark.parametrize("per", ["layer", "group"])
@pytest.mark.parametrize("momentum", ["auto", 0.8])
def test_rates_of_parts_minimise_the_dense_model_together(method, kind, per, momentum):
    net = mlp(4, 5, 3, 3)
    opt = method(
        net, lr=Auto(0.5, per=per), momentum=momentum, damping=0.05, likelihood=LIKELIHOODS[kind],
        groups=[{"params": net[-1].parameters()}],
    )  # fmt: skip
    sizes = [p.numel() for p in net.parameters()]
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for step, before in steps(opt, net, kind, 0.5):
        V = [
            torch.where(torch.isin(numbers, torch.tensor(part)), step.U, 0.0)
            for part in parts_of(net, per)
        ]
        rates, start = len(V), torch.zeros_like(step.g)
        if before is not None and momentum == "auto":
            V.append(before)
        elif before is not None:
            start = momentum * before
        F, V = step.F + 0.05 * torch.eye(len(step.F)).double(), torch.stack(V, 1)
        w = torch.linalg.solve(V.mT @ F @ V, -V.mT @ (step.g + F @ start))
        assert relative(V @ w + start, step.delta) < 1e-7
        nearest = -(step.U @ (V[:, :rates] @ w[:rates])) / (step.U @ step.U)
        assert opt.stats()["lr"] == pytest.approx(float(nearest), rel=1e-6)
        alone = step.best(before, 0.05, None, None if momentum == "auto" else momentum)[0]
        exact = method is natgrad.ExactNGD
        assert exact or float(nearest) != pytest.approx(alone, rel=1e-4)  # one rate differs


def test_another_part_of_the_batch_would_give_something_else():
    net = mlp(4, 5, 3)
    opt = natgrad.KFAC(net, lr=Auto(0.25), damping=0.05, likelihood=Categorical())
    step = Step(opt, net, "categorical", 0, 12)
    assert opt.stats()["lr"] != pytest.approx(step.best(None, 0.05)[0], rel=1e-3)


@every_method
@pytest.mark.parametrize(("lr", "momentum"), [("auto", 0.8), (0.3, "auto"), ("auto", 0.0)])
def test_only_one_of_them_is_chosen(method, lr, momentum):
    net = mlp(4, 5, 3)
    opt = method(net, lr=lr, momentum=momentum, damping=0.05, likelihood=Categorical())
    given = [None if value == "auto" else value for value in (lr, momentum)]
    for step, before in steps(opt, net, "categorical", 0.25):
        alpha, mu = step.best(before, 0.05, *given)
        assert (opt.stats()["lr"], opt.stats()["momentum"]) == pytest.approx((alpha, mu), rel=1e-8)
        assert relative(-alpha * step.U + mu * (0 if before is None else before), step.delta) < 1e-9


@every_method
def test_a_penalty_is_part_of_the_model(method):
    net = mlp(4, 5, 3)
    lr = Auto(1.0, l2=0.3)
    opt = method(net, lr=lr, momentum="auto", damping=0.05, likelihood=Categorical())
    for step, before in steps(opt, net, "categorical", l2=0.3):
        alpha, mu = step.best(before, 0.05)
        assert (opt.stats()["lr"], opt.stats()["momentum"]) == pytest.approx((alpha, mu), rel=1e-8)
        step.F -= 0.3 * torch.eye(len(step.F)).double()
        assert alpha != pytest.approx(step.best(before, 0.05)[0], rel=1e-3)


# quadratic losses -------------------------------------------------------------------------------


class Sides(nn.Module):
    """Linear in its parameters, and no structure by layers is exact."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(3, 2).double(), nn.Linear(3, 2, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[:, :3]) + self.other(x[:, 1:])


def regression(net: nn.Module, opt: NaturalGradient, k: int, reduction: str = "mean"):
    x = normal(16, 4, seed=k)
    y = normal(16, net(x).shape[1], seed=k + 50)

    def closure() -> Tensor:
        opt.zero_grad()
        losses = 0.5 * (net(x) - y).square().sum(1)
        loss = losses.mean() if reduction == "mean" else losses.sum()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    return x, y, closure


def stepped(opt: NaturalGradient, closure, y: Tensor, by: str) -> None:
    """A step that gets the loss by its closure, or by the batch's targets."""
    if by == "closure":
        opt.step(closure)
    else:
        closure()
        opt.step(targets=y)


def ratios(method, likelihood=Gaussian(), reduction="mean", by="closure", steps=3, **kwargs):  # noqa: B008
    net = Sides()
    damping = LevenbergMarquardt(0.1, **ALWAYS)
    opt = method(net, damping=damping, likelihood=likelihood, reduction=reduction, **kwargs)
    found = []
    for k in range(steps):
        _, y, closure = regression(net, opt, k, reduction)
        stepped(opt, closure, y, by)
        found.append(opt.stats()["reduction_ratio"])
    return found


@every_method
@pytest.mark.parametrize(
    ("lr", "momentum"),
    [(0.1, 0.9), (Auto(1.0), 0.9), (Auto(1.0), "auto"), (Auto(1.0, per="layer"), "auto")],
)
@pytest.mark.parametrize("by", ["closure", "targets"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_reduction_ratio_is_one_on_a_quadratic(method, lr, momentum, by, reduction):
    lr = lr / 16 if reduction == "sum" and isinstance(lr, float) else lr
    found = ratios(method, lr=lr, momentum=momentum, by=by, reduction=reduction)
    assert found == pytest.approx([1] * 3, rel=1e-8)


def test_it_is_not_one_with_an_approximation_or_a_part_of_the_batch():
    assert ratios(natgrad.KFAC, likelihood=None, lr=0.1)[-1] != pytest.approx(1, abs=1e-2)
    assert ratios(natgrad.KFAC, lr=Auto(0.25))[-1] != pytest.approx(1, abs=1e-2)


@every_method
@pytest.mark.parametrize(
    "lr", [0.1, Auto(1.0), Auto(1.0, per="layer")], ids=["fixed", "auto", "layers"]
)
def test_the_ratio_counts_what_weight_decay_does_to_the_loss(method, lr):
    assert ratios(method, lr=lr, weight_decay=0.1) == pytest.approx([1] * 3, rel=1e-8)


@every_method
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_linear_regression_is_solved_in_one_step(method, bias, outputs):
    net = mlp(4, outputs, bias=bias)
    opt = method(
        net, lr=Auto(1.0), momentum="auto", damping=1e-24, likelihood=Gaussian(), fisher="exact"
    )
    x, y, closure = regression(net, opt, 0)
    opt.step(closure)
    a = torch.cat([x, torch.ones_like(x[:, :1])], 1) if bias else x
    best = (y - a @ torch.linalg.lstsq(a, y).solution).square().sum(1).mean() / 2
    assert closure().item() == pytest.approx(best.item(), rel=1e-10)
    assert float(gradient(net).norm()) < 1e-9
    assert opt.stats()["lr"] == pytest.approx(1, rel=1e-9)


def test_the_same_step_with_a_given_learning_rate_does_not_solve_it():
    net = mlp(4, 3)
    opt = natgrad.KFAC(net, lr=0.9, damping=1e-24, likelihood=Gaussian(), fisher="exact")
    _, _, closure = regression(net, opt, 0)
    opt.step(closure)
    closure()
    assert float(gradient(net).norm()) > 1e-3


@every_method
@pytest.mark.parametrize("by", ["closure", "targets"])
def test_a_loss_summed_over_examples_makes_the_same_step(method, by):
    ends = []
    for reduction in ("mean", "sum"):
        net = mlp(4, 5, 3)
        opt = method(
            net, lr="auto", momentum="auto", damping=LevenbergMarquardt(0.3, every=1),
            likelihood=Gaussian(), reduction=reduction,
        )  # fmt: skip
        for k in range(4):
            _, y, closure = regression(net, opt, k, reduction)
            stepped(opt, closure, y, by)
        ends.append((weights(net), opt.stats()))
    assert relative(ends[1][0], ends[0][0]) < 1e-9
    for name in ("momentum", "damping", "reduction_ratio", "rejected"):
        assert ends[0][1][name] == pytest.approx(ends[1][1][name], rel=1e-7), name
    assert ends[0][1]["lr"] == pytest.approx(16 * ends[1][1]["lr"], rel=1e-7)


# products with R --------------------------------------------------------------------------------


class Poisson(Likelihood):
    """Counts with the rate ``exp f``, one for each output."""

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        return (f.exp() - targets * f).flatten(1).sum(1)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(f.exp(), generator)

    def columns(self, f: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
        for k in range(f[0].numel()):
            column = torch.zeros_like(f).flatten(1)
            column[:, k] = (f.flatten(1)[:, k] / 2).exp()
            yield column.view_as(f)


IGNORED = torch.tensor([[0, -100, 2], [-100, -100, -100], [1, 1, 0], [2, -100, -100]])
PRODUCTS = {
    "bernoulli": (Bernoulli(), (4, 3), None),
    "bernoulli positions": (Bernoulli(), (4, 2, 3), None),
    "gaussian": (Gaussian(), (4, 2, 3), None),
    "of one's own": (Poisson(), (4, 2, 3), None),
    "categorical": (Categorical(), (4, 3), torch.tensor([0, 2, 1, 1])),
    **{
        f"categorical {dim} {how} {y is IGNORED}": (
            Categorical(class_dim=dim, positions=how),
            (4, 3, 3),
            y,
        )
        for dim in (-1, 1)
        for how in ("mean", "sum")
        for y in (IGNORED, IGNORED.clamp_min(0))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_is_the_sum_over_columns_and_the_curvature_of_the_loss(name):
    likelihood, shape, y = PRODUCTS[name]
    f, v = normal(*shape), normal(*shape, seed=1)
    counted = None if y is None else y != -100
    found = likelihood.product(f, v, counted)
    expected = torch.zeros_like(f)
    for column in likelihood.columns(f, counted):
        along = (column * v).flatten(1).sum(1).view(-1, *[1] * (f.ndim - 1))
        expected += column * along
    assert relative(found, expected) < 1e-12
    y = normal(*shape, seed=2).abs() if y is None else y
    y = (y > 0.5).double() if isinstance(likelihood, Bernoulli) else y
    hessian = torch.autograd.functional.hvp(lambda f: likelihood.nll(f, y).sum(), f, v)[1]
    assert relative(found, hessian) < 1e-12


def test_a_likelihood_without_columns_says_so():
    class Bare(Poisson):
        columns = Likelihood.columns

    with pytest.raises(NotImplementedError, match="Bare defines no columns"):
        Bare().product(normal(2, 3), normal(2, 3))


def test_nothing_is_known_before_the_first_step():
    opt = METHODS[0](mlp(4, 3), lr="auto", momentum="auto", likelihood=Gaussian())
    assert named(METHODS[0]) == "KFAC"
    found = {name: opt.stats()[name] for name in ("lr", "momentum", "reduction_ratio")}
    assert found == pytest.approx(dict.fromkeys(found, nan), nan_ok=True)
