"""Which training batches a refit sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from natgrad.whiten import PRONG, Whitened, whiten
from tests.whiten.nets import attached, eye, loss_of, mlp, normal, relative, train

SGD = torch.optim.SGD


def batch(k: int, n: int = 8) -> torch.Tensor:
    """What :func:`tests.whiten.nets.train` gives the network at step ``k``."""
    return normal(n, 4, seed=k) + 0.5


def fitted_to(layer: Whitened, *batches: torch.Tensor, eps: float = 1e-3) -> bool:
    """Whether the first layer's constants are those of these inputs."""
    x = torch.cat(batches)
    expected = torch.cov(x.mT, correction=0) + eps * eye(4)
    found = layer.P.mT @ layer.P
    return relative(found @ expected, eye(4)) < 1e-9 and torch.allclose(layer.c, x.mean(0))


def test_the_first_refit_waits_for_enough_examples_and_later_ones_see_the_latest():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=10, samples=24))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 2)
    assert torch.equal(net[0].P, eye(4))
    train(net, opt, 1, first=2)
    assert fitted_to(net[0], *map(batch, range(3)))
    train(net, opt, 6, first=3)
    assert fitted_to(net[0], *map(batch, range(3)))
    train(net, opt, 1, first=9)
    assert fitted_to(net[0], *map(batch, range(7, 10)))
    train(net, opt, 10, first=10)
    assert fitted_to(net[0], *map(batch, range(17, 20)))


def test_the_first_refit_comes_in_any_case_after_every_steps():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=4))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 3)
    assert torch.equal(net[0].P, eye(4))
    train(net, opt, 5, first=3)  # 1000 examples are more than there are: all of the last four
    assert fitted_to(net[0], *map(batch, range(4, 8)))


def test_forwards_that_train_nothing_are_not_heard():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=2))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    for k in range(2):
        net.eval()
        net(batch(50 + k))
        net.train()
        with torch.no_grad():
            net(batch(60 + k))
        train(net, opt, 1, first=k)
    assert fitted_to(net[0], batch(0), batch(1))


def test_micro_batches_of_a_step_all_count():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=99, samples=16))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    for k in range(2):
        loss_of(net, batch(k)).backward()
        assert torch.equal(net[0].P, eye(4))
    opt.step()
    assert fitted_to(net[0], batch(0), batch(1))


@pytest.mark.parametrize("gradients", [False, True])
def test_checkpointed_layers_are_heard_once(gradients):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(4, 5, 3)

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    net, plain = Checkpointed(), mlp(4, 5, 3)
    seen = []
    for model in (net, plain):
        whitener = whiten(model, PRONG(every=99, gradients=gradients))
        whitener.attach(SGD(model.parameters(), lr=1e-3))
        loss_of(model, batch(0)).backward()
        window = whitener._window
        seen.append([s for each in window.seen.values() for s in (each.inputs, each.gradients)])
        assert set(window._calls.values()) == {8}
    for one, other in zip(*seen, strict=True):
        assert one.empty == other.empty
        if not one.empty:
            assert float(one.count) == float(other.count) == 8
            assert torch.equal(one.covariance(), other.covariance())
    assert seen[0][1].empty != gradients


def test_a_layer_called_twice_counts_its_examples_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(self.inner(self.inner(x).tanh()))

    net = Twice()
    whitener = whiten(net, PRONG(every=99))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 3)
    assert (whitener._window.batch, whitener._window.examples) == (8, 24)


def test_between_windows_nothing_is_measured():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=10, samples=8))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 5)
    assert not whitener._window.open
    assert all(s.inputs.empty for s in whitener._window.seen.values())
    train(net, opt, 4, first=5)
    assert whitener._window.open


def test_with_data_only_gradients_are_listened_to():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=2), batch(0))
    whitener.attach(SGD(net.parameters(), lr=1e-3))
    assert net[0].heard is None
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=4, samples=16, gradients=True), batch(0))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    train(net, opt, 1)
    assert not whitener._window.open  # two steps hold the 16 examples, and three are left
    train(net, opt, 1, first=1)
    assert whitener._window.open
    train(net, opt, 2, first=2)
    assert not torch.equal(net[0].Q, eye(5))
    assert fitted_to(net[0], batch(0))
