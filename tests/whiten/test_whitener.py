"""The schedule: when constants are renewed, and what comes with it."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from natgrad.whiten import PRONG, fold, whiten
from tests.whiten.nets import (
    attached,
    convnet,
    dense,
    eye,
    loss_of,
    mlp,
    normal,
    output,
    relative,
    train,
)

X = normal(40, 4) + 1
SGD = torch.optim.SGD


def test_constants_are_renewed_every_so_many_steps():
    net = mlp(4, 5, 3)
    opt = attached(whiten(net, PRONG(every=3), X), SGD(net.parameters(), lr=1e-2))
    changes, P = [], net[2].P.clone()
    for k in range(9):
        train(net, opt, 1, first=k)
        if not torch.equal(net[2].P, P):
            changes.append(k + 1)
            P = net[2].P.clone()
    assert changes == [3, 6, 9]


def test_a_refit_uses_the_data_with_the_parameters_of_the_day():
    net = mlp(4, 5, 3)
    opt = attached(whiten(net, PRONG(every=3), [X[:10], X[10:]]), SGD(net.parameters(), lr=1e-2))
    train(net, opt, 3)
    hidden = output(net[1], output(net[0], X))
    assert torch.allclose(net[2].c, hidden.mean(0))
    expected = torch.cov(hidden.mT, correction=0) + 1e-3 * eye(5)
    assert relative(net[2].P.mT @ net[2].P @ expected, eye(5)) < 1e-9


def test_refits_leave_the_function_of_the_trained_network():
    net, twin = convnet(), convnet()
    x = normal(20, 4, 5, 5)
    for model, every in ((net, 5), (twin, 99)):
        opt = attached(whiten(model, PRONG(every=every), x), SGD(model.parameters(), lr=1e-3))
        train(model, opt, 5, shape=(4, 5, 5))
    assert not torch.equal(net[5].P, twin[5].P)
    assert relative(output(net, x), output(twin, x)) < 1e-10


def test_refit_by_hand_takes_other_data():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(), X)
    whitener.refit(3 * X)
    assert torch.allclose(net[0].c, 3 * X.mean(0))
    whitener.refit()
    assert torch.allclose(net[0].c, X.mean(0))


def test_refit_by_hand_takes_the_training_batches_where_there_is_no_data():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=99))
    with pytest.raises(ValueError, match="needs data: none was given to whiten, no batch was seen"):
        whitener.refit()
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 2)
    whitener.refit()
    assert torch.allclose(net[0].c, torch.cat([normal(8, 4, seed=k) + 0.5 for k in (0, 1)]).mean(0))


def test_a_batch_that_is_not_finite_leaves_no_trace():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=2))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    net(X * torch.inf)
    train(net, opt, 1)
    opt.zero_grad()
    net(X * torch.nan)
    opt.step()
    assert all(x.isfinite().all() for x in net.state_dict().values())
    assert torch.allclose(net[0].c, normal(8, 4, seed=0).mean(0) + 0.5)


def test_parameters_that_are_not_finite_keep_the_constants_with_a_warning():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(), X)
    P = net[2].P.clone()
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="natgrad: 2: no input seen"):
        whitener.refit(2 * X)
    assert torch.equal(net[2].P, P)
    assert torch.allclose(net[0].c, 2 * X.mean(0))


def test_a_warning_that_is_an_error_changes_nothing():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(), X)
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    P = net[0].P.clone()
    with pytest.raises(UserWarning):
        whitener.refit(2 * X)
    assert torch.equal(net[0].P, P)


# attaching ---------------------------------------------------------------------------------------


def test_what_can_not_be_attached_is_refused():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(), X)
    with pytest.raises(
        ValueError, match=r"SGD holds none of the whitened layers' parameters \(0, 2"
    ):
        whitener.attach(SGD(mlp(4, 5, 3).parameters(), lr=0.1))
    opt = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="state must be 'transport' or 'rotate' or 'reset' or"):
        whitener.attach(opt, state="carry")
    with pytest.raises(ValueError, match="canonical_decay must be >= 0, got -1"):
        whitener.attach(opt, canonical_decay=-1)
    whitener.attach(opt)
    with pytest.raises(ValueError, match=r"attached to an optimizer; detach\(\) it first"):
        whitener.attach(opt)


def test_detached_it_does_nothing():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=1))
    opt = SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        whitener.attach(opt, canonical_decay=0.1)
        whitener.detach()
    train(net, opt, 3)
    assert whitener.steps == 0
    assert torch.equal(net[0].P, eye(4))
    assert not opt._optimizer_step_post_hooks
    assert not opt._optimizer_step_pre_hooks
    assert all(m.heard is None and m.followers == [] for m in whitener.layers.values())


def test_after_folding_training_goes_on_plainly():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=2), X)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3), canonical_decay=0.1)
    train(net, opt, 3)
    before = output(net, X)
    fold(net)
    opt.zero_grad()
    loss_of(net, X).backward()
    expected = net[0].weight.detach() - 1e-3 * net[0].weight.grad
    opt.step()
    assert torch.equal(net[0].weight, expected)
    train(net, opt, 5)
    assert relative(output(net, X), before) < 0.2
    assert not opt._optimizer_step_post_hooks


# weight decay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, True])
def test_canonical_decay_is_the_gradient_of_the_plain_weights_norm(gradients):
    net, x = convnet(), normal(20, 4, 5, 5)
    whitener = whiten(net, PRONG(every=99, gradients=gradients), x)
    for layer in whitener.layers.values():
        if gradients:
            o = layer.Q.shape[-1]
            Q = torch.eye(o).double() * 3 + normal(*layer.Q.shape)
            layer.refit(type(layer.in_use())(layer.P, layer.c, Q))
    opt = attached(whitener, SGD(net.parameters(), lr=0.0), canonical_decay=0.3)
    loss_of(net, x).backward()
    before = {p: p.grad.clone() for p in net.parameters()}
    penalty = 0.3 / 2 * sum(m.canonical()[0].square().sum() for m in whitener.layers.values())
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(penalty, parameters, allow_unused=True)
    opt.step()
    for p, extra in zip(parameters, wanted, strict=True):
        assert relative(p.grad, before[p] + (0 if extra is None else extra)) < 1e-10
    assert sum(extra is not None for extra in wanted) == 4


def test_decoupled_decay_shrinks_the_plain_weight():
    net = mlp(4, 5, 3)
    whiten(net, PRONG(), X)
    W = dense(net[0])[0]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5).step()
    assert relative(dense(net[0])[0], 0.95 * W) < 1e-12


# checkpoints -------------------------------------------------------------------------------------


def run(net, opt, whitener, steps, first):
    train(net, opt, steps, first=first)
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("data", [None, X])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("stop", [2, 5, 7])
@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_a_resumed_run_is_the_same_bit_by_bit(data, gradients, stop, make):
    def start():
        net = mlp(4, 5, 3)
        whitener = whiten(net, PRONG(every=4, samples=16, gradients=gradients), data)
        cls = {"sgd": SGD, "adam": torch.optim.Adam}[make]
        opt = cls(net.parameters(), **{"lr": 1e-2, **({"momentum": 0.9} if make == "sgd" else {})})
        return net, attached(whitener, opt, state="rotate"), whitener

    net, opt, whitener = start()
    run(net, opt, whitener, stop, 0)
    file = io.BytesIO()
    torch.save([net.state_dict(), opt.state_dict(), whitener.state_dict()], file)
    expected = run(net, opt, whitener, 9, stop)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    net, opt, whitener = start()
    for thing, state in zip((net, opt, whitener), states, strict=True):
        thing.load_state_dict(state)
    assert all(
        torch.equal(*pair) for pair in zip(run(net, opt, whitener, 9, stop), expected, strict=True)
    )
    assert whitener.steps == stop + 9


def test_a_checkpoint_between_micro_batches_goes_on_from_there():
    def start():
        net = mlp(4, 5, 3)
        whitener = whiten(net, PRONG(every=99, samples=16))
        return net, whitener, attached(whitener, SGD(net.parameters(), lr=0.0))

    net, whitener, _ = start()
    net(X[:8])
    state = whitener.state_dict()
    net, whitener, opt = start()
    whitener.load_state_dict(state)
    net(X[8:16])
    opt.step()  # the step has seen both halves: enough for the first refit
    assert whitener._window.batch == 16
    assert torch.allclose(net[0].c, X[:16].mean(0))


def test_a_checkpoint_of_other_layers_or_data_is_refused():
    states = [
        whiten(mlp(4, 5, 3), PRONG(), X).state_dict(),
        whiten(mlp(4, 5, 5, 3), PRONG()).state_dict(),
    ]
    whitener = whiten(mlp(4, 5, 3), PRONG())
    for state in states:
        with pytest.raises(ValueError, match="a whitener with other layers, data or gradients"):
            whitener.load_state_dict(state)


def test_a_checkpoint_holds_copies():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=99))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 1)
    state = whitener.state_dict()
    saved = copy.deepcopy(state)
    train(net, opt, 2, first=1)
    for name, seen in saved["window"]["seen"].items():
        for key, x in seen["inputs"].items():
            assert torch.equal(state["window"]["seen"][name]["inputs"][key], x)


def test_it_says_what_it_is():
    whitener = whiten(mlp(4, 5, 3), PRONG(every=7))
    assert repr(whitener).startswith("Whitener(PRONG(every=7, eps=0.001")
    assert repr(whitener).endswith("2 layers, 0 steps)")
