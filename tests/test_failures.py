"""Batches that are not finite leave no trace; statistics that are not never enter."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical, Gaussian
from tests.brute_force import METHODS
from tests.networks import mlp, normal
from tests.test_optim_state import same

every_method = pytest.mark.parametrize("method", METHODS)
EVERY = {"stats_every": 2, "refresh_every": 4}
FISHERS = {
    "sampled": {"likelihood": Categorical(), "seed": 5},
    "exact": {"likelihood": Categorical(), "fisher": "exact"},
    "empirical": {"likelihood": None},
}
MOMENTS = {"first": 0, "in between": 1, "statistics": 2, "refresh": 4}


def make(method: str, fisher: str = "sampled", **kwargs):
    net = mlp(4, 6, 3)
    kwargs = {"lr": 0.1, **EVERY, **FISHERS[fisher], **kwargs}
    return net, getattr(natgrad, method)(net, **kwargs)


def backward(net: nn.Module, k: int, factor: float = 1.0, bad: float | None = None) -> None:
    """A batch whose inputs, or whose loss, hold one number that is not finite."""
    x = normal(8, 4, seed=k)
    y = x[:, :3].argmax(1)
    if bad is not None:
        x[3, 1] = bad
    (factor * F.cross_entropy(net(x), y)).backward()


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        opt.zero_grad()
        backward(net, k)
        opt.step()


def everything(net: nn.Module, opt: torch.optim.Optimizer) -> dict:
    """Parameters, momentum, statistics, draws; all but the count of skipped steps."""
    state = copy.deepcopy({"net": net.state_dict(), "opt": opt.state_dict()})
    inner = state["opt"]["preconditioner"]
    del inner["skipped"]
    fresh = torch.Generator().manual_seed(opt.preconditioner.tap.draws.seed).get_state()
    if torch.equal(inner["draws"].get("generator", fresh), fresh):
        inner["draws"] = {}  # a generator that is made and not drawn from is none
    return state


BAD = {
    "nan": [float("nan")],
    "inf": [float("inf")],
    "second of two": [None, float("nan")],
    "first of two": [float("nan"), None],
}


@every_method
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("fisher", "bad"),
    [("sampled", "second of two"), ("exact", "nan"), ("empirical", "first of two"),
     ("sampled", "inf")],
)  # fmt: skip
def test_a_bad_batch_leaves_no_trace(method, fisher, moment, bad):
    (net, opt), (twin, other) = make(method, fisher), make(method, fisher)
    before = MOMENTS[moment]
    train(net, opt, range(before))
    train(twin, other, range(before))
    opt.zero_grad()
    for k, value in enumerate(BAD[bad]):
        backward(net, 20 + k, 1 / len(BAD[bad]), value)
    opt.step()
    assert same(everything(net, opt), everything(twin, other))
    assert (opt.stats()["skipped"], opt.stats()["step"]) == (1, before)
    train(net, opt, range(before, before + 5))
    train(twin, other, range(before, before + 5))
    assert same(everything(net, opt), everything(twin, other))
    assert opt.stats()["skipped"] == 1


@every_method
@pytest.mark.parametrize("moment", MOMENTS)
def test_raising_names_what_is_bad_and_leaves_no_trace_either(method, moment):
    (net, opt), (twin, other) = (make(method, nonfinite="raise") for _ in range(2))
    before = MOMENTS[moment]
    train(net, opt, range(before))
    train(twin, other, range(before))
    opt.zero_grad()
    backward(net, 20, bad=float("nan"))
    with pytest.raises(FloatingPointError, match=r"not finite: gradient of 0\.weight") as raised:
        opt.step()
    assert ("statistics of layer '2'" in str(raised.value)) == (moment != "in between")
    assert same(everything(net, opt), everything(twin, other))
    train(net, opt, range(before, before + 5))
    train(twin, other, range(before, before + 5))
    assert same(everything(net, opt), everything(twin, other))


@every_method
def test_a_gradient_spoilt_after_backward_is_seen_and_named(method):
    net, opt = make(method, nonfinite="raise")
    train(net, opt, range(2))
    before = everything(net, opt)
    opt.zero_grad()
    backward(net, 3)
    net[2].bias.grad[1] = float("inf")
    with pytest.raises(FloatingPointError, match=r"not finite: gradient of 2\.bias$"):
        opt.step()
    assert same(everything(net, opt), before)


@every_method
def test_ten_skipped_steps_in_a_row_are_remarked_once(method):
    net, opt = make(method)
    train(net, opt, range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for count in range(1, 16):
            opt.zero_grad()
            backward(net, 30, bad=float("nan"))
            opt.step()
            assert len(caught) == (count >= 10)
    assert "10 steps in a row were skipped" in str(caught[0].message)
    assert opt.stats()["skipped"] == 15
    train(net, opt, range(2, 4))
    for _ in range(9):
        opt.zero_grad()
        backward(net, 30, bad=float("nan"))
        opt.step()
    with pytest.warns(RuntimeWarning, match="in a row"):
        opt.step()  # a gradient that stays bad


class Overflowing(Gaussian):
    """Finite gradients of the loss beside scores too large to square in single precision."""

    size = 1.0

    def columns(self, f, counted=None):
        for column in super().columns(f, counted):
            yield column * Overflowing.size


@every_method
@pytest.mark.parametrize("at", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [1e25, 1e38])
def test_statistics_that_overflow_beside_finite_gradients_never_enter(method, at, size):
    def started():
        net = mlp(4, 6, 3).float()
        given = {"lr": 0.1, "likelihood": Overflowing(), "fisher": "exact", "refresh_every": 4}
        return net, getattr(natgrad, method)(net, **given)

    def step(net: nn.Module, opt: torch.optim.Optimizer, k: int) -> None:
        opt.zero_grad()
        net(normal(8, 4, seed=k).float()).square().mean().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        opt.step()

    Overflowing.size = 1.0
    (net, opt), (twin, other) = started(), started()
    for k in range(at):
        step(net, opt, k)
        step(twin, other, k)
    Overflowing.size = size
    step(net, opt, 9)
    Overflowing.size = 1.0
    assert opt.stats()["skipped"] == 1
    for k in range(at, at + 3):
        step(net, opt, k)
        step(twin, other, k)
    assert same(everything(net, opt), everything(twin, other))


@pytest.mark.parametrize("method", ["EKFAC", "TKFAC", "TEKFAC"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_squares_that_overflow_only_as_products_never_enter(method, at):
    """``|a|^2`` and ``|g|^2`` are finite, ``|a|^2 |g|^2``, of the corrected scale, is not."""
    net = mlp(4, 3).float()
    opt = getattr(natgrad, method)(
        net, lr=0.0, likelihood=Overflowing(), fisher="exact", refresh_every=4
    )
    Overflowing.size = 1.0
    for k in range(at + 1):
        opt.zero_grad()
        last = k == at
        Overflowing.size = 1e16 if last else 1.0
        x = normal(8, 4, seed=k).float() * (1e6 if last else 1.0)
        (net(x) * (1e-9 if last else 1.0)).square().mean().backward()
        opt.step()
    Overflowing.size = 1.0
    for layer in opt.preconditioner.layers:
        for moment in layer.block.moments():
            assert bool(torch.isfinite(moment.value).all())
    assert opt.stats()["skipped"] == 1
