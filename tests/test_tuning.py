"""Steps that choose their length, are looked at afterwards, and may be taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import inf, isnan, nan

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Auto, Categorical
from natgrad.damping import LevenbergMarquardt, TraceRestricted
from natgrad.optim import NaturalGradient
from tests.loop.loops import data, every_method, weights
from tests.networks import mlp, relative
from tests.test_optim_state import same

every_lr = pytest.mark.parametrize("lr", [0.1, "auto"])


def make(method=natgrad.KFAC, net: nn.Module | None = None, **kwargs):
    net = net or mlp(4, 6, 3)
    given = {"lr": "auto", "damping": 0.1, "likelihood": Categorical()}
    return net, method(net, **{**given, **kwargs})


def always(value: float = 0.1, **kwargs) -> LevenbergMarquardt:
    return LevenbergMarquardt(value, **{"every": 1, "reject_every": 1, **kwargs})


class Closure:
    """The loss of a batch as users write it; what ``then`` makes of the second one of a step."""

    def __init__(
        self, net: nn.Module, opt: NaturalGradient, k: int = 0, *,
        then: Callable[[Tensor], Tensor] = lambda loss: loss, guarded: bool = True,
        to_none: bool = True,
    ) -> None:  # fmt: skip
        self.net, self.opt, self.batch = net, opt, data(k)
        self.then, self.guarded, self.to_none = then, guarded, to_none
        self.with_gradients: list[bool] = []

    def __call__(self) -> Tensor:
        self.with_gradients.append(torch.is_grad_enabled())
        self.opt.zero_grad(set_to_none=self.to_none)
        loss = F.cross_entropy(self.net(self.batch[0]), self.batch[1])
        if torch.is_grad_enabled() or not self.guarded:
            loss.backward()
        return loss if len(self.with_gradients) == 1 else self.then(loss)


def train(net: nn.Module, opt: NaturalGradient, steps: range, **kwargs) -> list[Closure]:
    closures = [Closure(net, opt, k, **kwargs) for k in steps]
    for closure in closures:
        opt.step(closure)
    return closures


def state(net: nn.Module, opt: NaturalGradient) -> dict:
    return copy.deepcopy({"net": net.state_dict(), "state": opt.state_dict()["state"]})


# steps taken back -------------------------------------------------------------------------------

BAD = {
    "larger": lambda loss: loss + 100,
    "nan": lambda loss: loss * nan,
    "inf": lambda loss: loss + inf,
}


@every_method
@every_lr
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_step_that_raised_the_loss_is_taken_back_bit_for_bit(method, lr, bad):
    momentum = "auto" if lr == "auto" else 0.9
    net, opt = make(
        method, lr=lr, momentum=momentum, damping=always(), average=0.9, refresh_every=100
    )
    train(net, opt, range(3), then=lambda loss: loss * 0)
    before, value = state(net, opt), opt.tuner.adapted.value
    assert len(before["state"][0]) == 2, "momentum and average"
    train(net, opt, range(3, 4), then=bad)
    assert same(state(net, opt), before)
    assert opt.tuner.adapted.value == pytest.approx(value * 2 / 0.95)
    assert (opt.stats()["rejected"], opt.stats()["step"]) == (1, 4)
    assert opt.preconditioner.schedule.refreshes(opt.preconditioner.steps)
    train(net, opt, range(4, 5), then=lambda loss: loss * 0)
    assert not same(state(net, opt), before)
    assert not opt.preconditioner.schedule.refreshes(opt.preconditioner.steps)


@every_method
def test_so_is_the_very_first_and_the_next_begins_without_momentum(method):
    net, opt = make(method, damping=always(average := 0.5), average=average)
    start = weights(net)
    train(net, opt, range(1), then=BAD["larger"])
    assert torch.equal(weights(net), start)
    assert all(not found for found in opt.state_dict()["state"].values())


@pytest.mark.parametrize("by", ["closure", "targets"])
def test_a_step_far_too_long_is_taken_back(by):
    net, opt = make(lr=1e4, damping=always())
    before, closure = weights(net), Closure(*(net, opt))
    if by == "closure":
        opt.step(closure)
    else:
        closure()
        opt.step(targets=closure.batch[1])
    assert torch.equal(weights(net), before)
    assert opt.stats()["rejected"] == 1
    assert opt.stats()["damping"] > 0.1


def test_a_rise_stays_where_nobody_looks():
    for damping in (always(reject_every=None), always(reject_every=2), 0.1):
        net, opt = make(lr=0.1, damping=damping, reduction_every=1)
        before = weights(net)
        train(net, opt, range(1), then=BAD["larger"])
        assert not torch.equal(weights(net), before)
        assert opt.stats()["reduction_ratio"] < 0


def test_after_it_factors_are_inverted_with_the_new_damping():
    given = {"lr": 0.1, "decay": 0.0, "fisher": "exact", "momentum": 0.0}
    net, opt = make(damping=always(rejected=50.0), refresh_every=100, **given)
    train(net, opt, range(1), then=BAD["larger"])
    old = torch.cat([p.grad.flatten() for p in net.parameters()])
    train(net, opt, range(1))
    twin, other = make(damping=0.1 / 0.95 * 50, **given)
    train(twin, other, range(1))
    assert relative(weights(net), weights(twin)) < 1e-12
    new = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert relative(new, old) > 0.5


# when -------------------------------------------------------------------------------------------


@every_method
def test_the_loss_is_asked_for_again_on_these_steps_only(method):
    net, opt = make(method, lr=0.01, damping=LevenbergMarquardt(0.1, every=3, reject_every=2))
    values, evaluations = [], []
    for k in range(6):
        (closure,) = train(net, opt, range(k, k + 1))
        evaluations.append(len(closure.with_gradients))
        values.append(opt.stats()["damping"])
    assert evaluations == [1, 2, 2, 2, 1, 2]
    assert values[:2] == [0.1, 0.1]
    assert values[2] == values[3] == values[4] == pytest.approx(0.1 * 0.95**3)


def test_a_number_as_damping_measures_where_it_is_told_to():
    net, opt = make(damping=0.1, reduction_every=2)
    evaluations = [len(closure.with_gradients) for closure in train(net, opt, range(4))]
    assert evaluations == [1, 2, 1, 2]
    closure = Closure(net, opt)
    closure()
    opt.step()
    assert len(closure.with_gradients) == 1


def test_a_step_taken_back_between_measurements_grows_the_damping_once():
    net, opt = make(lr=0.1, damping=always(every=5))
    train(net, opt, range(1), then=BAD["nan"])
    assert opt.stats()["damping"] == 0.2
    assert isnan(opt.stats()["reduction_ratio"])


# refusals ---------------------------------------------------------------------------------------

REFUSED = {
    "likelihood": ({"likelihood": None}, "say likelihood=Categorical"),
    "kl_clip": ({"kl_clip": 1e-3}, "kl_clip and max_norm are for a given learning rate"),
    "max_norm": ({"max_norm": 1.0}, "kl_clip and max_norm are for a given learning rate"),
    "nesterov": ({"nesterov": True}, "nesterov"),
    "unknown lr": ({"lr": "automatic"}, "lr must be a number or 'auto', got 'automatic'"),
    "unknown momentum": ({"momentum": "no"}, "momentum must be a number or 'auto', got 'no'"),
    "damping": ({"damping": TraceRestricted(1e-3)}, "TraceRestricted has none"),
    "average": ({"average": 1.0}, r"average must be in \[0, 1\) or None"),
    "reduction": ({"reduction_every": 0}, "reduction_every must be at least 1"),
}


@pytest.mark.parametrize("momentum", [0.9, "auto"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_and_leaves_no_hooks(name, momentum):
    given, message = REFUSED[name]
    net = mlp(4, 6, 3)
    with pytest.raises(ValueError, match=message):
        make(net=net, **{"momentum": momentum, **given})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("given", "message"),
    [({"fraction": 0.0}, "fraction must be in"), ({"fraction": 1.1}, "fraction must be in"),
     ({"l2": -1.0}, "l2 must be at least 0")],
)  # fmt: skip
def test_auto_must_make_sense(given, message):
    with pytest.raises(ValueError, match=message):
        Auto(**given)


@every_method
def test_what_a_step_lacks_is_said(method):
    net, opt = make(method, damping=always())
    closure = Closure(net, opt)
    closure()
    with pytest.raises(RuntimeError, match=r"needs the loss after the step.*targets"):
        opt.step()
    net, opt = make(method, lr=0.1)
    Closure(net, opt)()
    with pytest.raises(RuntimeError, match="no use for it, or no likelihood"):
        opt.step(targets=closure.batch[1])
    net, opt = make(method, lr=0.1, damping=always(), likelihood=None)
    Closure(net, opt)()
    with pytest.raises(RuntimeError, match="or no likelihood"):
        opt.step(targets=closure.batch[1])


@every_method
def test_targets_are_of_one_call_and_nothing_has_happened_when_they_are_refused(method):
    net, opt = make(method, damping=always())
    for k in range(2):
        F.cross_entropy(net(data(k)[0]), data(k)[1]).backward()
    before, grads = state(net, opt), [p.grad.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"there were 2; use step\(closure\)"):
        opt.step(targets=data(1)[1])
    assert same(state(net, opt), before)
    assert opt.stats()["step"] == 0
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))


def test_a_gradient_that_came_some_other_way_is_no_batch_for_the_model():
    net, opt = make()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"natgrad has no statistics|needs the batch"):
        opt.step()


# figures, and what is not finite ----------------------------------------------------------------


@every_method
def test_its_figures_have_the_same_names_at_every_step(method):
    for kwargs, names in (
        ({"lr": 0.1}, {"reduction_ratio"}),
        ({"lr": 0.1, "damping": always()}, {"reduction_ratio", "damping", "rejected"}),
        ({}, {"reduction_ratio", "lr", "momentum"}),
        ({"damping": always()}, {"reduction_ratio", "lr", "momentum", "damping", "rejected"}),
    ):
        net, opt = make(method, **kwargs)
        for k in range(3):
            assert set(opt.tuner.stats()) == names
            assert set(opt.stats()) >= names
            assert all(type(value) is float for value in opt.stats().values())
            train(net, opt, range(k, k + 1))


@every_method
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_batch_that_is_not_finite_leaves_nothing_behind(method, nonfinite):
    net, opt = make(method, damping=always(), average=0.9, momentum="auto", nonfinite=nonfinite)
    train(net, opt, range(2))
    twin, other = copy.deepcopy((net, opt))
    closure = Closure(net, opt)
    closure.batch = (closure.batch[0] * nan, closure.batch[1])
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            opt.step(closure)
    else:
        opt.step(closure)
    assert closure.with_gradients == [True]
    assert opt.tuner.replay.calls == []
    assert opt.stats()["step"] == 2
    for model, optimizer in ((net, opt), (twin, other)):
        train(model, optimizer, range(3, 6))
    assert same(net.state_dict(), twin.state_dict())
    assert same(opt.state_dict()["state"], other.state_dict()["state"])
    assert opt.stats()["damping"] == other.stats()["damping"]


def test_a_batch_whose_gradients_were_dropped_is_not_in_the_next_step():
    ends = []
    for drops in (False, True):
        net, opt = make(damping=always())
        if drops:
            F.cross_entropy(net(data(9)[0]), data(9)[1]).backward()
            net.zero_grad()
        F.cross_entropy(net(data(0)[0]), data(0)[1]).backward()
        opt.step(targets=data(0)[1])
        ends.append(opt.stats()["lr"])
    assert ends[0] == ends[1]


def test_a_checkpoint_in_another_precision_brings_its_last_step_along():
    nets = [mlp(4, 6, 3), mlp(4, 6, 3).float()]
    opts = [make(net=net, momentum="auto", average=0.9)[1] for net in nets]
    train(nets[0], opts[0], range(2))
    opts[1].load_state_dict(opts[0].state_dict())
    found = [value for each in opts[1].state.values() for value in each.values()]
    assert len(found) == 8
    assert all(value.dtype == torch.float32 for value in found)


def test_a_model_that_foretells_a_rise_is_a_bad_one():
    damping = always(reject_every=None)
    _, opt = make(damping=damping)
    opt.tuner._judged(0, before=1.0, after=2.0, foretold=0.5)  # a ratio of 2
    assert damping.value == pytest.approx(0.1 / 0.95)
    opt.tuner._judged(0, before=1.0, after=0.0, foretold=-0.5)
    assert damping.value == pytest.approx(0.1)
