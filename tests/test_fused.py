"""Natural gradients straight from the rows are those of the usual way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant
from tests.networks import mlp, normal, relative

RULES = {
    "sampled": {"likelihood": Categorical()},
    "exact": {"likelihood": Categorical(), "fisher": "exact", "stats_every": 2},
    "empirical": {"likelihood": None},
    "eigenvalues": {"likelihood": Categorical(), "damping": Constant(0.1)},
    "kl_clip": {"likelihood": Categorical(), "kl_clip": 1e-3},
}


def train(net: nn.Module, n: int, steps: int = 7, **kwargs) -> natgrad.KFAC:
    opt = natgrad.KFAC(net, lr=0.05, refresh_every=3, **kwargs)
    for k in range(steps):
        opt.zero_grad()
        x = normal(n, 4, seed=k)
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        opt.step()
    return opt


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [2, 40], ids=["few rows", "many rows"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_steps_are_the_usual_steps(rule, n, bias):
    net, twin = (mlp(4, 8, 3, bias=bias) for _ in range(2))
    train(net, n, fused=True, **RULES[rule])
    train(twin, n, **RULES[rule])
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.requires_grad
        assert relative(p, q) < 1e-9


def test_fused_leaves_the_model_trainable_when_a_forward_raises():
    net = mlp(4, 8, 3)
    train(net, 8, steps=1, fused=True, likelihood=Categorical())
    with pytest.raises(RuntimeError, match="shapes"):
        net(normal(8, 5))
    assert all(p.requires_grad for p in net.parameters())


def test_fused_evaluation_leaves_gradients_alone():
    net = mlp(4, 8, 3)
    train(net, 8, steps=1, fused=True, likelihood=Categorical())
    before = [p.grad.clone() for p in net.parameters()]
    with torch.no_grad():
        net(normal(8, 4))
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


def test_steps_that_are_not_fused_are_solved_from_rows_too():
    net = mlp(4, 9, 3)
    opt = train(net, 2, steps=2, fused=True, likelihood=Categorical(), damping=0.1)
    listening, found = opt.preconditioner.listening, {}
    for k in (2, 3):  # the third of these steps decomposes
        opt.zero_grad()
        x = normal(2, 4, seed=k)
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        found[k] = {index for index, true in listening.claims().items() if true}
        opt.step()
    assert found == {2: set(), 3: {0, 1}}


def test_convolutions_are_left_to_the_step():
    net = nn.Sequential(nn.Conv2d(6, 40, 2), nn.Flatten(), nn.Linear(40, 3)).double()
    opt = natgrad.KFAC(net, lr=0.1, damping=0.1, fused=True, refresh_every=9, stats_every=9)
    for k in range(2):
        opt.zero_grad()
        F.cross_entropy(net(normal(3, 6, 2, 2, seed=k)), torch.zeros(3).long()).backward()
        natural = [layer.natural for layer in opt.preconditioner.layers]
        assert natural == ([False, False] if k == 0 else [False, True])
        opt.step()
