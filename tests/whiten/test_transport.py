"""What becomes of an optimizer's state at a refit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, optim

from natgrad.whiten import PRONG, Constants, Whitened, fold, whiten
from natgrad.whiten.coordinates import canonical, carried_gradient
from tests.whiten.nets import attached, convnet, dense, eye, loss_of, normal, relative, train

X = normal(20, 4, 5, 5)
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=1e-3, momentum=0.9),
    "plain sgd": lambda p: optim.SGD(p, lr=1e-3),
    "adam": lambda p: optim.Adam(p, lr=1e-3),
    "amsgrad": lambda p: optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3),
    "nadam": lambda p: optim.NAdam(p, lr=1e-3),
    "adamax": lambda p: optim.Adamax(p, lr=1e-3),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-3, lr_decay=0.1, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1e-3),
    "radam": lambda p: optim.RAdam(p, lr=1e-3),
    "asgd": lambda p: optim.ASGD(p, lr=1e-3),
}


def trained(kind: str, state: str, steps: int = 4, every: int = 99, **kwargs):
    net = convnet()
    whitener = whiten(net, PRONG(every=every, **kwargs), X)
    opt = attached(whitener, OPTIMIZERS[kind](net.parameters()), state=state)
    train(net, opt, steps, shape=(4, 5, 5))
    return net, opt, whitener


def state_of(opt: optim.Optimizer, layer: Whitened, name: str) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else opt.state[layer.bias][name].double().clone()
    return layer.matrices(opt.state[layer.weight][name].double().clone(), bias)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop"])
@pytest.mark.parametrize("basis", ["pca", "diagonal"])
@pytest.mark.parametrize("gradients", [False, True])
def test_displacements_keep_the_plain_velocity(kind, basis, gradients):
    _, opt, whitener = trained(kind, "rotate", basis=basis, gradients=gradients)
    velocities = []
    for _ in range(2):
        at = [(m.in_use(), state_of(opt, m, "momentum_buffer")) for m in whitener.layers.values()]
        velocities.append([canonical(constants, *pair) for constants, pair in at])
        whitener.refit(2 * X + 1)
    for before, after in zip(*velocities, strict=True):
        for one, other in zip(before, after, strict=True):
            assert one is other or relative(one, other) < 1e-9


def test_the_trajectory_of_momentum_does_not_see_a_change_of_basis():
    """Refits on the same data rotate ``P`` and no more: SGD with momentum walks on as before."""
    ends = []
    for bases in (("pca",) * 3, ("zca", "pca", "cholesky")):
        net = convnet()
        whitener = whiten(net, PRONG(every=99, basis=bases[0]), X)
        opt = attached(whitener, OPTIMIZERS["sgd"](net.parameters()))
        for k, basis in enumerate(bases):
            whitener.rule = PRONG(every=99, basis=basis)
            whitener.refit()
            train(net, opt, 5, shape=(4, 5, 5), first=5 * k)
        ends.append([x for m in whitener.layers.values() for x in dense(m) if x is not None])
    for one, other in zip(*ends, strict=True):
        assert relative(one, other) < 1e-8


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "adagrad"])
def test_rotating_carries_averages_and_second_moments_of_gradients(kind):
    net, opt, whitener = trained(kind, "rotate", gradients=True)
    names = {
        "adam": {"exp_avg": False, "exp_avg_sq": True},
        "rmsprop": {"grad_avg": False, "square_avg": True}, "adagrad": {"sum": True},
    }[kind]  # fmt: skip
    layers = whitener.layers.values()
    before = [
        (m, m.planned(m.identity()).old, {name: state_of(opt, m, name) for name in names})
        for m in layers
    ]
    whitener.refit(2 * X + 1)
    for layer, old, states in before:
        for name, squared in names.items():
            expected = carried_gradient(old, layer.in_use(), *states[name], squared=squared)
            found = state_of(opt, layer, name)
            for one, other in zip(found, expected, strict=True):
                assert one is other or relative(one, other) < 1e-7
            assert not squared or found[0].min() >= 0
    step = opt.state[net[5].weight].get("step")
    assert step is None or float(step) == 4


def test_a_gradient_is_carried_to_the_gradient_in_the_new_coordinates():
    net, opt, whitener = trained("adam", "rotate", gradients=True)

    def gradients() -> list[Tensor]:
        net.zero_grad()
        loss_of(net, X).backward()
        return [p.grad.clone() for p in net.parameters()]

    for p, g in zip(net.parameters(), gradients(), strict=True):
        opt.state[p]["exp_avg"].copy_(g)
    whitener.refit(2 * X + 1)
    for p, g in zip(net.parameters(), gradients(), strict=True):
        assert relative(opt.state[p]["exp_avg"], g) < 1e-8


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("state", ["transport", "rotate", "reset"])
def test_what_is_not_carried_starts_anew(kind, state):
    """After the refit the optimizer walks as a fresh one does from there."""
    carried = {
        "transport": {"sgd", "plain sgd"}, "reset": {"plain sgd"},
        "rotate": {"sgd", "plain sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"},
    }[state]  # fmt: skip
    net, opt, whitener = trained(kind, state, steps=3)
    whitener.refit(2 * X + 1)
    twin = copy.deepcopy(net)
    fresh = OPTIMIZERS[kind](twin.parameters())
    for model, each in ((net, opt), (twin, fresh)):
        train(model, each, 3, shape=(4, 5, 5), first=9)
    same = all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert same == (kind not in carried or kind == "plain sgd")
    assert all(p.isfinite().all() for p in net.parameters())


def test_kept_state_is_left_alone():
    _, opt, whitener = trained("adam", "keep")
    before = copy.deepcopy(opt.state_dict()["state"])
    whitener.refit(2 * X + 1)
    for k, state in opt.state_dict()["state"].items():
        assert all(torch.equal(x, before[k][name]) for name, x in state.items())


def test_other_parameters_of_the_optimizer_keep_their_state():
    net = convnet()
    whitener = whiten(net, PRONG(), X, only=lambda name, _: name == "5")
    opt = attached(whitener, OPTIMIZERS["adam"](net.parameters()), state="reset")
    train(net, opt, 2, shape=(4, 5, 5))
    whitener.refit(2 * X)
    assert {p for p, state in opt.state.items() if state} == (
        set(net.parameters()) - {net[5].weight, net[5].bias}
    )


def test_a_bias_without_momentum_of_its_own_counts_as_resting():
    net = convnet()
    whitener = whiten(net, PRONG(), X)
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    opt = attached(whitener, OPTIMIZERS["sgd"](weights))
    train(net, opt, 2, shape=(4, 5, 5))
    layer = net[5]
    m = opt.state[layer.weight]["momentum_buffer"].clone() @ layer.P
    whitener.refit(2 * X)
    assert relative(opt.state[layer.weight]["momentum_buffer"] @ layer.P, m) < 1e-9
    assert layer.bias not in opt.state


def test_folding_carries_momentum_to_the_plain_coordinates():
    net, opt, _ = trained("sgd", "transport")
    layer = net[5]
    W, b = canonical(layer.in_use(), *state_of(opt, layer, "momentum_buffer"))
    fold(net)
    assert relative(opt.state[net[5].weight]["momentum_buffer"], W.squeeze(-2)) < 1e-10
    assert relative(opt.state[net[5].bias]["momentum_buffer"], b) < 1e-10


def test_a_refit_by_hand_is_followed_too():
    net, opt, _ = trained("sgd", "transport")
    layer = net[5]
    before = canonical(layer.in_use(), *state_of(opt, layer, "momentum_buffer"))
    layer.refit(Constants(normal(27, 27) + 6 * eye(27), normal(27)))
    after = canonical(layer.in_use(), *state_of(opt, layer, "momentum_buffer"))
    for one, other in zip(before, after, strict=True):
        assert relative(one, other) < 1e-9
