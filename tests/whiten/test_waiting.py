"""Refits shared out over an interval, and refits of what the training loop has seen."""

from __future__ import annotations

import io
from functools import partial
from itertools import chain

import pytest
import torch

from natgrad.whiten import PRONG, PRONGPlus, fold, whiten
from natgrad.whiten.waiting import Waiting
from tests.whiten.nets import attached, convnet, dense, mlp, normal, output, relative, train

X = normal(40, 4)
SGD = torch.optim.SGD


def constants(whitener):
    return {name: layer.P.clone() for name, layer in whitener.layers.items()}


def changed(before, whitener):
    return [name for name, P in constants(whitener).items() if not torch.equal(P, before[name])]


def test_layers_take_turns_that_lie_evenly():
    net = mlp(4, 5, 6, 7, 3)
    whitener = whiten(net, PRONG(every=8, spread=True), X)
    opt, turns = attached(whitener, SGD(net.parameters(), lr=1e-3)), []
    for layer in whitener.layers.values():
        layer.followers.append(
            lambda change: turns.append((whitener.steps, change.layer.view.name))
        )
    train(net, opt, 16)
    # four groups in eight steps, the dearest layer first
    assert turns == [(8, "6"), (10, "4"), (12, "2"), (14, "0"), (16, "6")]


def test_more_layers_than_steps_go_in_groups():
    layers = {str(k): whiten(mlp(4, 4), PRONG(), X).layers["0"] for k in range(5)}
    waiting = Waiting(layers, 2)
    assert sorted(waiting.slots) == [0, 1]
    assert sorted(chain(*waiting.slots.values())) == sorted(layers)
    assert all(2 <= len(names) <= 3 for names in waiting.slots.values())


@pytest.mark.parametrize("rule", [PRONG, PRONGPlus, partial(PRONG, gradients=True)])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_every_partial_refit_keeps_the_function(make, rule):
    """D15 is no matter here: each layer's refit is whole."""
    net, x = (mlp(4, 5, 6, 3), X) if make is mlp else (convnet(), normal(20, 4, 5, 5))
    whitener = whiten(net, rule(every=4, spread=True, samples=20), x)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3, momentum=0.9))
    renew, counts = whitener._renew, []

    def watched(seen, plain):
        before = output(net, x)
        renew(seen, plain)
        assert relative(output(net, x), before) < 1e-10
        counts.append(len(seen))

    whitener._renew = watched
    train(net, opt, 12, shape=x.shape[1:])
    assert sum(counts) == (12 // 4 - 1) * len(whitener.layers) + len(whitener._waiting.slots[0])
    assert max(counts) < len(whitener.layers)


def test_constants_are_those_of_the_statistics_at_the_intervals_beginning():
    found = []
    for spread, steps in ((False, 6), (True, 11)):
        net = mlp(4, 5, 6, 3)
        whitener = whiten(net, PRONG(every=6, spread=spread), X)
        train(net, attached(whitener, SGD(net.parameters(), lr=1e-3)), steps)
        found.append([layer.in_use() for layer in whitener.layers.values()])
    for at_once, in_turns in zip(*found, strict=True):
        assert relative(in_turns.c, at_once.c) < 1e-9
        assert relative(in_turns.P.mT @ in_turns.P, at_once.P.mT @ at_once.P) < 1e-9


def test_a_refit_by_hand_is_of_all_layers_and_ends_the_turns():
    net = mlp(4, 5, 6, 3)
    whitener = whiten(net, PRONG(every=6, spread=True), X)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 6)
    assert whitener._waiting.seen
    before = constants(whitener)
    whitener.refit(2 * X)
    assert changed(before, whitener) == list(whitener.layers)
    assert not whitener._waiting.seen


def test_layers_that_are_folded_have_no_turn():
    net = mlp(4, 5, 6, 3)
    whitener = whiten(net, PRONG(every=6, spread=True), X)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 6)
    fold(net)
    train(net, opt, 6)
    assert not whitener.layers


# from the training loop --------------------------------------------------------------------------


def test_refits_from_training_go_through_the_data_once():
    net, passes = mlp(4, 5, 3), []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    whitener = whiten(net, PRONG(every=2, samples=16, from_training=True), Counted([X]))
    opt, own = attached(whitener, SGD(net.parameters(), lr=0.0)), normal(16, 4, seed=5)
    assert torch.allclose(whitener.layers["0"].c, X[:16].mean(0))
    before = output(net, X)
    for _ in range(4):
        opt.zero_grad()
        net(own).sum().backward()
        opt.step()
    assert len(passes) == 1
    assert whitener.steps == 4
    assert torch.allclose(whitener.layers["0"].c, own.mean(0))
    assert relative(output(net, X), before) < 1e-10


def test_without_a_training_batch_the_data_serve():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(from_training=True), X)
    whitener.refit()
    assert torch.allclose(whitener.layers["0"].c, X.mean(0))


# checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_training", [False, True])
@pytest.mark.parametrize("stop", [3, 6, 8, 10])
def test_a_resumed_run_is_the_same_bit_by_bit(stop, from_training):
    def start():
        net = mlp(4, 5, 6, 3)
        rule = PRONG(every=6, samples=16, spread=True, from_training=from_training)
        whitener = whiten(net, rule, X)
        opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
        return net, opt, whitener

    net, opt, whitener = start()
    train(net, opt, stop)
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in (net, opt, whitener)], file)
    train(net, opt, 9, first=stop)
    file.seek(0)
    resumed = start()
    for thing, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    train(*resumed[:2], 9, first=stop)
    for one, other in zip(net.parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(net.buffers(), resumed[0].buffers(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(dense(net[0])[0], dense(resumed[0][0])[0])


def test_a_checkpoint_of_another_rhythm_is_refused():
    state = whiten(mlp(4, 5, 3), PRONG(spread=True), X).state_dict()
    with pytest.raises(ValueError, match="another spread="):
        whiten(mlp(4, 5, 3), PRONG(), X).load_state_dict(state)
