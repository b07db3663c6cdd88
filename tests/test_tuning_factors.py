"""The search for a damping of the factors (Martens & Grosse 2015, section 6.6)."""

from __future__ import annotations

import pytest
import torch

import natgrad
from natgrad import Auto, Categorical
from natgrad.damping import LevenbergMarquardt
from tests.loop.loops import weights
from tests.networks import mlp, relative
from tests.test_tuning import Closure, train

EVERY = 2
METHODS = [natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC]


def searching(**kwargs) -> LevenbergMarquardt:
    given = {"every": 100, "reject_every": None, "decay": 0.5, "factors_every": EVERY}
    return LevenbergMarquardt(0.1, **{**given, **kwargs})


def optimizer(method, damping):
    net = mlp(4, 6, 3)
    schedule = {"stats_every": 1, "refresh_every": 1, "decay": 1.0}
    return net, method(
        net, lr=Auto(1.0), momentum="auto", likelihood=Categorical(), fisher="exact",
        damping=damping, **schedule,
    )  # fmt: skip


def foretold(method, steps: int, of_factors: float) -> tuple[float, torch.Tensor]:
    """What the damped model foretells of the last step with this damping, and where it leads."""
    net, opt = optimizer(method, searching(factors_every=None))
    train(net, opt, range(steps))
    opt.preconditioner.damping.of_factors = of_factors
    chooser, seen = opt.tuner.chooser, []
    choose = chooser.choose
    chooser.choose = lambda *args: seen.append(choose(*args)) or seen[-1]
    train(net, opt, range(steps, steps + 1))
    return seen[-1].change(0.1), weights(net)


@pytest.mark.parametrize("method", METHODS)
def test_the_candidate_of_which_most_is_foretold_is_taken(method):
    damping = searching()
    net, opt = optimizer(method, damping)
    train(net, opt, range(EVERY + 1))
    candidates = {value: foretold(method, EVERY, value) for value in (0.1, 0.1 * 4, 0.1 / 4)}
    best = min(candidates, key=lambda value: candidates[value][0])
    assert len({round(change, 12) for change, _ in candidates.values()}) == 3
    assert damping.of_factors == pytest.approx(best)
    assert damping.value == 0.1
    assert relative(weights(net), candidates[best][1]) < 1e-10


def test_between_searches_the_value_stays_and_each_goes_on_from_the_last():
    damping = searching()
    net, opt = optimizer(natgrad.KFAC, damping)
    found = []
    for k in range(2 * EVERY + 1):
        train(net, opt, range(k, k + 1))
        found.append(damping.for_factors)
    assert found[0] == found[1] == 0.1
    assert found[2] == found[3]
    assert found[4] / found[3] in (pytest.approx(0.25), 1.0, pytest.approx(4.0))


def test_gradients_hold_the_natural_gradient_of_the_winner():
    net, opt = optimizer(natgrad.KFAC, searching())
    train(net, opt, range(EVERY + 1))
    [layer, *_] = opt.preconditioner.layers
    solved = opt.preconditioner.solved[0]
    assert relative(layer.view.grad(), layer.block.solve(solved.M)) < 1e-12


def test_it_is_saved():
    net, opt = optimizer(natgrad.KFAC, searching())
    train(net, opt, range(EVERY + 1))
    _, other = optimizer(natgrad.KFAC, searching())
    other.load_state_dict(opt.state_dict())
    assert other.preconditioner.damping.of_factors == opt.preconditioner.damping.of_factors


def test_a_step_taken_back_raises_it_too():
    damping = searching(reject_every=1)
    damping.of_factors = 0.2
    damping.reject()
    assert damping.of_factors == pytest.approx(0.4)


def test_without_a_quadratic_model_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="factors_every"):
        natgrad.KFAC(mlp(4, 6, 3), lr=0.1, damping=searching(), likelihood=Categorical())


def test_fused_layers_take_part():
    nets = []
    for fused in (False, True):
        net = mlp(4, 6, 3)
        opt = natgrad.KFAC(
            net, lr="auto", momentum="auto", likelihood=Categorical(), fisher="exact",
            damping=searching(), refresh_every=3, fused=fused,
        )  # fmt: skip
        for k in range(5):
            opt.step(Closure(net, opt, k))
        nets.append(weights(net))
    assert relative(*nets) < 1e-10
