"""Training runs in which learning rate, momentum and damping come by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import LevenbergMarquardt
from tests.loop.loops import every_method, weights
from tests.test_optim_state import same, through_a_file


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """Images of 4x4 pixels and their classes."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, classes = datasets.load_digits(return_X_y=True)
    x = F.avg_pool2d(torch.from_numpy(images).float().reshape(-1, 1, 8, 8), 2).flatten(1)
    return (x - x.mean(0)) / (x.std(0) + 0.1), torch.from_numpy(classes)


def batch(k: int, n: int = 64) -> tuple[Tensor, Tensor]:
    x, y = digits()
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(k))[:n]
    return x[chosen], y[chosen]


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1)] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Linear(16, 12), *middle, nn.Linear(12, 10))


AUTOMATIC = {"lr": "auto", "momentum": "auto", "likelihood": Categorical(), "average": 0.9}
EIGENBASES = pytest.mark.parametrize("method", [natgrad.EKFAC, natgrad.TEKFAC])
RARELY = {"burn_in": 5, "stats_every": 2, "refresh_every": 10}


def automatic(method, norm: bool = False, **kwargs):
    net = network(norm)
    damping = LevenbergMarquardt(1.0, every=2, reject_every=2)
    return net, method(net, **{"damping": damping, **AUTOMATIC, **kwargs})


def train(net: nn.Module, opt, steps: Iterable[int], by: str = "closure", casts: bool = False):
    losses = []
    for k in steps:
        x, y = batch(k)

        def closure(x=x, y=y) -> Tensor:
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if casts else nullcontext():
                loss = F.cross_entropy(net(x), y)
            if torch.is_grad_enabled():
                loss.backward()
            return loss

        if by == "closure":
            losses.append(opt.step(closure).item())
        else:
            losses.append(closure().item())
            opt.step(targets=y)
    return losses


@torch.no_grad()
def evaluated(net: nn.Module) -> float:
    net.eval()
    loss = F.cross_entropy(net(digits()[0]), digits()[1]).item()
    net.train()
    return loss


@every_method
@pytest.mark.parametrize(
    ("norm", "by"), [(False, "closure"), (True, "targets")], ids=["mlp", "batchnorm"]
)
def test_the_loss_falls_without_a_setting(method, norm, by):
    net, opt = automatic(method, norm)
    before = evaluated(net)
    train(net, opt, range(30), by)
    after = evaluated(net)
    assert before > 2.2
    assert after < 0.75
    assert opt.stats()["damping"] < 1
    with opt.averaged():
        averaged = evaluated(net)
    assert averaged < 1.0
    assert evaluated(net) == after


@every_method
def test_it_beats_the_same_steps_with_a_rate_too_small(method):
    net, opt = automatic(method)
    train(net, opt, range(12))
    twin, other = automatic(method, lr=0.01, momentum=0.0)
    train(twin, other, range(12))
    assert evaluated(net) < 0.7 * evaluated(twin)


@every_method
@pytest.mark.parametrize(
    ("norm", "kwargs"),
    [
        (False, {}),
        (True, RARELY),
        (False, {"lr": 0.3, "momentum": 0.9}),
        (True, {"fused": True}),
        (True, {"lr": natgrad.Auto(per="layer")}),
    ],
    ids=["", "rarely", "given rate", "fused", "layers"],
)
def test_a_run_resumes_bit_for_bit(method, norm, kwargs):
    if method is natgrad.ExactNGD and "fused" in kwargs:
        pytest.skip("is not fused")
    net, opt = automatic(method, norm, **kwargs)
    train(net, opt, range(6))
    opt.preconditioner.schedule.forced = True  # as after a step that was taken back
    random = torch.get_rng_state()
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = automatic(method, norm, **kwargs)
    train(resumed, other, range(20, 22))
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    assert other.tuner.stats() == pytest.approx(opt.tuner.stats(), nan_ok=True)
    assert other.preconditioner.schedule.forced
    for model, optimizer in ((net, opt), (resumed, other)):
        torch.set_rng_state(random)
        train(model, optimizer, range(6, 11))
    assert same(resumed.state_dict(), net.state_dict())
    assert same(other.state_dict(), opt.state_dict())
    with opt.averaged(), other.averaged():
        assert torch.equal(weights(net), weights(resumed))


@every_method
def test_a_checkpoint_without_tuning_goes_on_with_it(method):
    net, opt = automatic(method, lr=0.1, momentum=0.9, damping=0.1)
    train(net, opt, range(3))
    saved = opt.state_dict()
    del saved["tuner"]
    twin, other = automatic(method)
    twin.load_state_dict(net.state_dict())
    other.load_state_dict(saved)
    assert other.stats()["damping"] == 1.0
    losses = train(twin, other, range(3, 12))
    assert losses[-1] < losses[0]


@every_method
def test_in_mixed_precision_it_stays_close(method):
    found = []
    for casts in (False, True):
        net, opt = automatic(method)
        train(net, opt, range(8), "closure", casts)
        train(net, opt, range(8, 12), "targets", casts)
        found.append(evaluated(net))
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_scheduler_multiplies_what_is_chosen():
    ends = []
    for scheduled in (True, False):
        net, opt = automatic(natgrad.EKFAC)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)
        for k in range(5):
            train(net, opt, [k])
            if scheduled:
                scheduler.step()
            else:
                opt.param_groups[0]["lr"] *= 0.8
        assert opt.param_groups[0]["lr"] == pytest.approx(0.8**5)
        ends.append(weights(net))
    assert torch.equal(*ends)
    net, opt = automatic(natgrad.EKFAC)
    train(net, opt, range(5))
    assert not torch.allclose(weights(net), ends[0])


def test_a_cycle_of_rate_and_momentum_is_of_multipliers():
    net, opt = automatic(natgrad.KFAC)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=20)
    for k in range(20):
        train(net, opt, [k])
        scheduler.step() if k < 19 else None
    assert evaluated(net) < 1.2


@every_method
def test_a_bad_batch_costs_its_step_alone(method):
    ends = []
    for bad in (False, True):
        net, opt = automatic(method)
        train(net, opt, range(4))
        if bad:
            opt.zero_grad()
            x, y = batch(4)
            F.cross_entropy(net(x * float("nan")), y).backward()
            opt.step(targets=y)
            assert opt.stats()["skipped"] == 1
        train(net, opt, range(5, 9))
        ends.append((weights(net), opt.stats()["damping"]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@EIGENBASES
def test_eigenbases_burn_in_and_then_come_rarely(method, monkeypatch):
    net, opt = automatic(method, **RARELY)
    curvature, found = opt.preconditioner.curvature, {"commit": [], "refresh": []}
    for name, steps in found.items():
        call = getattr(curvature, name)

        def counted(*args, call=call, steps=steps):
            steps.append(opt.preconditioner.steps)
            return call(*args)

        monkeypatch.setattr(curvature, name, counted)
    before = evaluated(net)
    train(net, opt, range(40))
    assert evaluated(net) < 0.4 * before
    assert found["commit"] == [*range(5), *range(6, 40, 2)]
    due = {*range(5), 10, 20, 30}
    assert set(found["refresh"]) >= due
    assert len(set(found["refresh"]) - due) <= opt.stats()["rejected"]


@EIGENBASES
def test_a_forced_decomposition_carries_the_scale_over(method):
    net, opt = automatic(method, stats_every=2, refresh_every=100)
    train(net, opt, range(3))
    blocks = [layer.block for layer in opt.preconditioner.layers]

    def known() -> list[tuple[float, Tensor]]:
        bases = [block.basis.eigen()[0].vectors.clone() for block in blocks]
        return [(float(b.trace()), U) for b, U in zip(blocks, bases, strict=True)]

    before = known()
    opt.preconditioner.schedule.forced = True
    train(net, opt, range(3, 4))
    for (trace, U), (old, V) in zip(known(), before, strict=True):
        assert trace == pytest.approx(old, rel=1e-4)
        assert not torch.allclose(U, V, atol=1e-3)
