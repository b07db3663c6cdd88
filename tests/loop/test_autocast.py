"""Mixed precision: autocast, and GradScaler around the loss."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler

import natgrad
from natgrad import Categorical
from natgrad.optim import NaturalGradient
from tests.loop.loops import data, every_fisher, every_method, moments, weights
from tests.networks import mlp, relative

HALVES = [torch.bfloat16, torch.float16]


def run(
    method: type[NaturalGradient],
    *,
    half: torch.dtype | None = None,
    scaler: GradScaler | None = None,
    clip: bool = False,
    steps: int = 4,
    bad: int = -1,
    reduction: str = "mean",
    **kwargs,
) -> tuple[nn.Module, NaturalGradient]:
    """The usual loop of mixed precision; the loss of step ``bad`` is infinite."""
    net = mlp(4, 6, 3).float()
    opt = method(net, lr=0.05, damping=0.1, reduction=reduction, **kwargs)
    for k in range(steps):
        x, y = data(k)
        opt.zero_grad()
        with torch.autocast("cpu", half) if half else nullcontext():
            f = net(x.float())
            assert f.dtype == (half or torch.float32)
            loss = F.cross_entropy(f, y, reduction=reduction)
        loss = loss * float("inf") if k == bad else loss
        (scaler.scale(loss) if scaler else loss).backward()
        if clip:
            if scaler:
                scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(net.parameters(), 0.2)
        if scaler:
            scaler.step(opt)
            scaler.update()
        else:
            opt.step()
    return net, opt


@every_method
@every_fisher
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_a_scale_that_is_a_power_of_two_changes_nothing(method, fisher, clip, half):
    plain, _ = run(method, clip=clip, half=half, **fisher)
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    scaled, _ = run(method, scaler=scaler, clip=clip, half=half, **fisher)
    assert scaler.get_scale() == 2.0**14
    assert torch.equal(weights(scaled), weights(plain))


@every_fisher
def test_nor_where_the_loss_is_a_sum(fisher):
    plain, _ = run(natgrad.KFAC, reduction="sum", **fisher)
    scaler = GradScaler("cpu", init_scale=64.0)
    scaled, _ = run(natgrad.KFAC, scaler=scaler, reduction="sum", **fisher)
    assert torch.equal(weights(scaled), weights(plain))


@every_method
@every_fisher
def test_in_float16_the_scaled_loop_follows_that_of_float32(method, fisher):
    exact, _ = run(method, steps=2, **fisher)
    half, opt = run(
        method, steps=2, half=torch.float16, scaler=GradScaler("cpu", init_scale=2.0**10), **fisher
    )
    assert relative(weights(half), weights(exact)) < 2e-3
    assert opt.stats()["skipped"] == 0


@every_method
@every_fisher
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half_precision_logits_give_the_statistics_of_full_ones(method, fisher, half):
    (_, opt), (_, other) = run(method, steps=1, half=half, **fisher), run(method, steps=1, **fisher)
    if method in (natgrad.EKFAC, natgrad.TEKFAC):  # scales depend on the order of the basis
        found, expected = ([x.block.dense() for x in o.preconditioner.layers] for o in (opt, other))
        pairs = list(zip(found, expected, strict=True))
    else:
        pairs = list(zip(moments(opt), moments(other), strict=True))
    for found, expected in pairs:
        assert found.dtype == torch.float32
        assert relative(found, expected) < 0.05


@every_method
@every_fisher
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
def test_a_step_that_overflows_is_skipped_and_the_scale_adapts(method, fisher, clip):
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    net, opt = run(method, scaler=scaler, clip=clip, bad=2, steps=3, **fisher)
    same, _ = run(method, scaler=GradScaler("cpu"), clip=clip, steps=2, **fisher)
    assert scaler.get_scale() == 512
    assert (opt.stats()["skipped"], opt.stats()["step"]) == (1, 2)
    assert torch.equal(weights(net), weights(same))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_targets_are_drawn_and_fused_steps_taken_under_autocast(half, scaled):
    kwargs = {
        "half": half,
        "steps": 6,
        "likelihood": Categorical(),
        "stats_every": 2,
        "refresh_every": 2,
    }
    nets = []
    for fused in (False, True):
        scaler = GradScaler("cpu", init_scale=256.0) if scaled else None
        nets.append(run(natgrad.KFAC, fused=fused, scaler=scaler, **kwargs)[0])
    assert relative(weights(nets[1]), weights(nets[0])) < 0.02


def test_a_preconditioner_in_front_of_another_optimizer_is_told_the_scale():
    results = []
    for scale in (None, 2.0**9):
        net = mlp(4, 6, 3).float()
        pre = natgrad.Preconditioner(net, natgrad.blocks.KFAC, damping=0.1)
        sgd = torch.optim.SGD(net.parameters(), lr=0.05)
        scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for k in range(3):
            x, y = data(k)
            sgd.zero_grad()
            scaler.scale(F.cross_entropy(net(x.float()), y)).backward()
            scaler.unscale_(sgd)
            pre.step(loss_scale=scaler.get_scale())
            scaler.step(sgd)
            scaler.update()
        results.append(weights(net))
    assert torch.equal(results[1], results[0])
