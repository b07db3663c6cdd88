"""The running average of the iterates, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.averaging import IterateAverage
from natgrad.damping import LevenbergMarquardt
from tests.loop.loops import backward, every_method, train, weights
from tests.networks import mlp
from tests.test_optim_state import same, through_a_file


def make(method=natgrad.KFAC, average: float | None = 0.6, **kwargs):
    net = mlp(4, 6, 3)
    given = {"lr": 0.1, "damping": 0.1, "likelihood": Categorical(), "average": average}
    return net, method(net, **{**given, **kwargs})


def inside(net: nn.Module, opt: torch.optim.Optimizer) -> Tensor:
    with opt.averaged():
        return weights(net)


@every_method
@pytest.mark.parametrize("lr", [0.1, "auto"])
def test_it_is_the_mean_at_first_and_then_an_exponential_one(method, lr):
    net, opt = make(method, lr=lr)
    iterates: list[Tensor] = []
    for k in range(6):
        train(net, opt, [k])
        iterates.append(weights(net))
        found = inside(net, opt)
        if k < 2:  # 1 - 1/k <= 0.6
            assert torch.allclose(found, torch.stack(iterates).mean(0), rtol=1e-12)
            expected = found
        else:
            expected = 0.6 * expected + 0.4 * iterates[-1]
        assert torch.allclose(found, expected, rtol=1e-12)
        assert torch.equal(weights(net), iterates[-1])


def test_without_decay_it_is_the_last_one():
    net, opt = make(average=0.0)
    train(net, opt, range(3))
    assert torch.equal(inside(net, opt), weights(net))


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_of_many_the_plain_mean_goes_on_until_the_decay_is_reached(decay):
    p = nn.Parameter(torch.zeros(2).double())
    average = IterateAverage(torch.optim.SGD([p], lr=0.1), decay)
    x = torch.tensor([3.0, -1.0]).double()
    last = round(1 / (1 - decay))
    for k in range(1, last + 1):
        with torch.no_grad():
            p.copy_(k * x)
        average.update(k)
    with average.in_place():
        assert torch.allclose(p.detach(), (last + 1) / 2 * x, rtol=1e-9)


def test_the_parameters_come_back_after_an_error_too():
    net, opt = make()
    train(net, opt, range(3))
    before, seen = weights(net), []

    def validate() -> None:
        with opt.averaged():
            seen.append(weights(net))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        validate()
    assert not torch.equal(seen[0], before)
    assert torch.equal(weights(net), before)


def test_the_parameters_stay_the_same_objects():
    net, opt = make()
    train(net, opt, range(2))
    parameters = list(net.parameters())
    with opt.averaged():
        assert all(p is q for p, q in zip(parameters, net.parameters(), strict=True))
    train(net, opt, range(2, 4))


def test_before_the_first_step_it_is_what_is_there():
    net, opt = make()
    assert torch.equal(inside(net, opt), weights(net))


def test_none_is_kept_unless_asked_for():
    net, opt = make(average=None)
    train(net, opt, range(2))
    assert all("average" not in found for found in opt.state_dict()["state"].values())
    with pytest.raises(RuntimeError, match=r"keeps no average of the iterates: say average=0\.99"):
        opt.averaged()


@every_method
def test_it_does_not_change_the_iterates(method):
    ends = []
    for average in (None, 0.9):
        net, opt = make(method, average)
        train(net, opt, range(4))
        ends.append(weights(net))
    assert torch.equal(*ends)


@every_method
def test_it_is_saved_and_goes_on_bit_for_bit(method):
    net, opt = make(method)
    train(net, opt, range(3))
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = make(method)
    train(resumed, other, range(7, 9))
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    assert torch.equal(inside(resumed, other), inside(net, opt))
    train(net, opt, range(3, 6))
    train(resumed, other, range(3, 6))
    assert torch.equal(inside(resumed, other), inside(net, opt))
    assert same(other.state_dict()["state"], opt.state_dict()["state"])


def test_a_step_that_was_skipped_or_taken_back_does_not_enter():
    net, opt = make(lr=1e4, damping=LevenbergMarquardt(0.1, every=1, reject_every=1))
    backward(net, 0)
    opt.step(targets=torch.zeros(8, dtype=torch.long))
    assert opt.stats()["rejected"] == 1
    net, opt = make()
    train(net, opt, range(2))
    before = inside(net, opt)
    opt.zero_grad()
    (net(torch.ones(3, 4).double()).sum() * float("nan")).backward()
    opt.step()
    assert torch.equal(inside(net, opt), before)


def test_a_parameter_that_came_later_starts_with_its_value():
    net, opt = make()
    train(net, opt, range(2))
    late = nn.Parameter(torch.ones(2).double())
    opt.add_param_group({"params": [late]})
    train(net, opt, range(2, 3))
    assert torch.equal(opt.state[late]["average"], late.detach())
