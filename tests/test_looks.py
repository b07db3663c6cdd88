"""How often a step asks the device for a value, which on an accelerator waits for all before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import natgrad
from natgrad import Categorical
from tests.networks import mlp, normal

METHODS = {"kfac": natgrad.KFAC, "tkfac": natgrad.TKFAC, "ekfac": natgrad.EKFAC}
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


class Looks(TorchDispatchMode):
    """Counts what brings values of tensors to Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count, self.ops = 0, []
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (self.add(), tolist(x))[1])

    def add(self) -> None:
        self.count += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(str(func))
        if func.overloadpacket.__name__ in READS:
            self.add()
        return func(*args, **(kwargs or {}))


def watched(opt, net: nn.Module, monkeypatch, steps: int) -> list[Looks]:
    """What happens in each step, from forgetting gradients to the update."""
    found = []
    for k in range(steps):
        x = normal(2, 4, seed=k)
        y = x[:, :3].argmax(1)
        with Looks(monkeypatch) as looks:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
        monkeypatch.undo()
        found.append(looks)
    return found


@pytest.mark.parametrize("bounds", [{}, {"kl_clip": 1e-3}, {"max_norm": 0.1}])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_statistics_looks_once_or_not_at_all(method, bounds, monkeypatch):
    for nonfinite, expected in (("skip", 1), ("zero", 0)):
        net = mlp(4, 9, 9, 3)
        opt = METHODS[method](
            net, lr=0.1, damping=0.1, likelihood=Categorical(), stats_every=8, refresh_every=8,
            nonfinite=nonfinite, **bounds,
        )  # fmt: skip
        looks = watched(opt, net, monkeypatch, 6)
        assert looks[0].count > 1  # the counter counts
        assert [each.count for each in looks[2:]] == [expected] * 4


@pytest.mark.parametrize("method", METHODS)
def test_steps_without_statistics_are_all_the_same_operations(method, monkeypatch):
    """What a CUDA graph asks of a step that it records: nothing depends on values."""
    net = mlp(4, 9, 9, 3)
    opt = METHODS[method](
        net, lr=0.1, damping=0.1, likelihood=Categorical(), stats_every=8, refresh_every=8,
        nonfinite="zero",
    )  # fmt: skip
    looks = watched(opt, net, monkeypatch, 9)
    assert all(each.ops == looks[2].ops for each in looks[3:8])
    assert looks[8].ops != looks[2].ops  # with statistics


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_is_a_step_of_zero(method):
    net = mlp(4, 9, 9, 3)
    opt = METHODS[method](
        net, lr=0.1, momentum=0, damping=0.1, likelihood=Categorical(), stats_every=3,
        refresh_every=3, nonfinite="zero",
    )  # fmt: skip
    x = normal(2, 4)
    for k in range(5):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
        loss.backward()
        if k in (1, 3):  # without statistics, and with
            net[2].weight.grad[0, 0] = float("inf")
        before = [p.detach().clone() for p in net.parameters()]
        opt.step()
        moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        assert all(moved) if k not in (1, 3) else not any(moved)
    # the step that took statistics was skipped, the other counts
    assert opt.preconditioner.skipped == 1
    assert opt.preconditioner.steps == 4


def test_a_finite_step_is_the_usual_one():
    nets = []
    for nonfinite in ("skip", "zero"):
        net = mlp(4, 9, 9, 3)
        opt = natgrad.KFAC(
            net, lr=0.1, damping=0.1, likelihood=Categorical(), stats_every=2, refresh_every=4,
            nonfinite=nonfinite,
        )  # fmt: skip
        watched(opt, net, pytest.MonkeyPatch(), 7)
        nets.append(net)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
