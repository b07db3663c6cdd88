"""Every scheduler of torch drives our optimizers as it drives SGD."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import natgrad
from natgrad import Categorical
from tests.loop.loops import METHODS, backward, named, weights
from tests.networks import mlp, relative

STEPS = 8
NEEDED: dict[str, dict[str, Any]] = {  # arguments without a default
    "LambdaLR": {"lr_lambda": lambda k: 0.9**k},
    "MultiplicativeLR": {"lr_lambda": lambda k: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 5]},
    "ExponentialLR": {"gamma": 0.8},
    "CosineAnnealingLR": {"T_max": STEPS},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": STEPS + 1},
    "ReduceLROnPlateau": {"patience": 0},
}
SCHEDULERS = [
    name
    for name, found in inspect.getmembers(lr_scheduler, inspect.isclass)
    if issubclass(found, lr_scheduler.LRScheduler) and not name.startswith(("LRSch", "_"))
]


def schedule(name: str, opt: torch.optim.Optimizer) -> Any:
    kwargs: dict[str, Any] = NEEDED.get(name, {})
    if name in ("SequentialLR", "ChainedScheduler"):
        parts = [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.8)]
        if name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(parts)
        return lr_scheduler.SequentialLR(opt, parts, milestones=[3])
    return getattr(lr_scheduler, name)(opt, **kwargs)


def settings(opt: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["momentum"]) for group in opt.param_groups]


def test_all_of_torchs_schedulers_are_here():
    assert {"OneCycleLR", "CyclicLR", "ReduceLROnPlateau", "SequentialLR"} < set(SCHEDULERS)
    assert len(SCHEDULERS) >= 14


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_sets_the_rates_it_would_set_for_sgd_and_the_steps_obey(name):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    groups = [{"params": net[2].parameters(), "lr": 0.02}]
    opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical(), groups=groups)
    parts = [{"params": twin[0].parameters()}, {"params": twin[2].parameters(), "lr": 0.02}]
    sgd = torch.optim.SGD(parts, lr=0.1, momentum=0.9)
    ours, theirs = schedule(name, opt), schedule(name, sgd)
    buffers = [torch.zeros_like(p) for p in net.parameters()]
    seen = []
    for k in range(STEPS):
        opt.zero_grad()
        backward(net, k)
        before = [p.detach().clone() for p in net.parameters()]
        opt.step()
        sgd.step()
        assert settings(opt) == settings(sgd)
        seen += settings(opt)
        rates = [pair for pair in settings(opt) for _ in range(2)]
        for j, (p, (lr, momentum)) in enumerate(zip(net.parameters(), rates, strict=True)):
            buffers[j] = momentum * buffers[j] + p.grad
            assert relative(p, before[j] - lr * buffers[j]) < 1e-12
        arguments = (1.0,) if name == "ReduceLROnPlateau" else ()
        for each in (ours, theirs):
            each.step(*arguments)
    assert len(set(seen)) > 2, "the scheduler changed nothing"
    if name in ("OneCycleLR", "CyclicLR"):
        assert len({momentum for _, momentum in seen}) > 2, "nor the momentum"


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_bounds_and_figures_use_the_scheduled_rate(method):
    kls = []
    for factor in (1.0, 0.1):
        net = mlp(4, 6, 3)
        opt = method(net, lr=0.5, kl_clip=1e-2)
        lr_scheduler.LambdaLR(opt, lambda k, factor=factor: factor)
        backward(net, 0)
        opt.step()
        kls.append((opt.stats()["kl"], opt.stats()["clip"]))
    assert kls[1][0] == pytest.approx(0.01 * kls[0][0], rel=1e-9)
    for kl, clip in kls:
        assert clip == pytest.approx(min(1.0, (1e-2 / (2 * kl)) ** 0.5), rel=1e-9)
    assert kls[0][1] < 1


def test_a_scheduler_resumes_with_the_optimizer():
    def made():
        net = mlp(4, 6, 3)
        opt = natgrad.TEKFAC(net, lr=0.1)
        return net, opt, schedule("OneCycleLR", opt)

    def go(net, opt, cycle, steps) -> None:
        for k in steps:
            opt.zero_grad()
            backward(net, k)
            opt.step()
            cycle.step()

    whole, half, rest = made(), made(), made()
    go(*whole, range(8))
    go(*half, range(4))
    for one, other in zip(rest, half, strict=True):
        one.load_state_dict(other.state_dict())
    go(*rest, range(4, 8))
    assert torch.equal(weights(whole[0]), weights(rest[0]))
