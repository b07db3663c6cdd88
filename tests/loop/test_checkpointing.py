"""Activation checkpointing: recomputed forwards count once; the reentrant kind is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import natgrad
from natgrad import Categorical
from tests.loop.loops import FISHERS, data, every_fisher, every_method, moments, train, weights
from tests.networks import mlp

SCHEDULES = [{}, {"stats_every": 2, "refresh_every": 4}]


class Checkpointed(nn.Module):
    """A network whose layers ``start`` to ``stop`` are recomputed in the backward pass."""

    def __init__(
        self, start: int = 0, stop: int = 0, *, reentrant: bool = False, extracted: int = 0
    ) -> None:
        super().__init__()
        self.net = mlp(4, 6, 5, 3)
        self.start, self.stop, self.reentrant, self.extracted = start, stop, reentrant, extracted

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.net[: self.extracted](x)
        h = self.net[self.extracted : self.start](h)
        if self.reentrant:
            h = h if h.requires_grad else h.requires_grad_()
        if self.start < self.stop:
            inside = self.net[self.start : self.stop]
            h = checkpoint(inside, h, use_reentrant=self.reentrant)
        return self.net[max(self.extracted, self.start, self.stop) :](h)


@every_method
@every_fisher
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["every step", "rarely"])
@pytest.mark.parametrize(("start", "stop"), [(2, 4), (0, 5)], ids=["a part", "all"])
def test_the_trajectory_is_that_without_checkpointing_bit_for_bit(
    method, fisher, schedule, start, stop
):
    plain, recomputed = Checkpointed(), Checkpointed(start, stop)
    for net in (plain, recomputed):
        train(net, method(net, lr=0.1, **schedule, **fisher), range(6))
    assert torch.equal(weights(plain), weights(recomputed))


@pytest.mark.parametrize("fisher", [*FISHERS.values(), {"likelihood": Categorical(), "seed": 3}])
def test_fused_steps_and_drawn_targets_do_not_notice_either(fisher):
    plain, recomputed = Checkpointed(), Checkpointed(0, 4)
    for net in (plain, recomputed):
        opt = natgrad.KFAC(net, lr=0.1, fused=True, stats_every=2, refresh_every=2, **fisher)
        train(net, opt, range(6))
    assert torch.equal(weights(plain), weights(recomputed))


@every_fisher
def test_a_recomputed_forward_counts_once(fisher):
    net = Checkpointed(0, 5)
    opt = natgrad.KFAC(net, lr=0.1, decay=1.0, **fisher)
    train(net, opt, range(3))
    for layer in opt.preconditioner.layers:
        assert float(layer.block.A.weight) == float(layer.block.G.weight) == 3 * 8


@every_fisher
def test_dropout_inside_is_recomputed_alike(fisher):
    class Model(nn.Module):
        def __init__(self, how: bool) -> None:
            super().__init__()
            self.how = how
            self.net = nn.Sequential(*mlp(4, 6), nn.Dropout(0.5), nn.Tanh(), *mlp(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=False) if self.how else self.net(x)

    found = []
    for how in (False, True):
        net = Model(how)
        torch.manual_seed(5)
        opt = natgrad.TKFAC(net, lr=0.1, **fisher)
        train(net, opt, range(4))
        found.append([weights(net), *moments(opt)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@every_method
@every_fisher
@pytest.mark.parametrize(
    ("start", "stop", "named"), [(2, 4, "net.2"), (2, 5, "net.2"), (0, 5, "net.0")]
)
def test_reentrant_checkpointing_is_refused_naming_a_layer_inside(
    method, fisher, start, stop, named
):
    net = Checkpointed(start, stop, reentrant=True)
    opt = method(net, lr=0.1, **fisher)
    x, y = data(0)
    x.requires_grad_(start == 0)
    with pytest.raises(RuntimeError, match=rf"layer '{named}'.* is inside a reentrant activation"):
        F.cross_entropy(net(x), y).backward()
    assert all(not layer.block.is_ready for layer in opt.preconditioner.layers)


@every_method
@every_fisher
@pytest.mark.parametrize("frozen", [True, False])
def test_a_feature_extractor_without_gradients_is_not_mistaken_for_it(method, fisher, frozen):
    plain, recomputed = Checkpointed(extracted=2), Checkpointed(2, 4, extracted=2)
    for net in (plain, recomputed):
        net.net[0].requires_grad_(not frozen)
        train(net, method(net, lr=0.1, **fisher), range(4))
    assert torch.equal(weights(plain), weights(recomputed))


@every_fisher
def test_a_layer_used_without_gradients_and_inside_a_checkpoint_is_not_either(fisher):
    """A momentum-free target branch: the same layers run first without gradients."""

    class Model(nn.Module):
        def __init__(self, how: bool) -> None:
            super().__init__()
            self.net, self.how = mlp(4, 6, 3), how

        def forward(self, x: Tensor) -> Tensor:
            f = checkpoint(self.net, x, use_reentrant=False) if self.how else self.net(x)
            with torch.no_grad():
                target = self.net(2 * x)
            return f + target

    nets = [Model(how) for how in (False, True)]
    for net in nets:
        train(net, natgrad.KFAC(net, lr=0.1, **fisher), range(3))
    assert torch.equal(weights(nets[0]), weights(nets[1]))


@every_fisher
def test_a_layer_used_with_gradients_and_inside_a_reentrant_checkpoint_is_refused(fisher):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = mlp(4, 4), mlp(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.net, self.net(x), use_reentrant=True))

    net = Model()
    natgrad.KFAC(net, lr=0.1, **fisher)
    x, y = data(0)
    with pytest.raises(RuntimeError, match=r"layer 'net.0' is inside a reentrant activation"):
        F.cross_entropy(net(x), y).backward()


@every_method
@every_fisher
def test_the_whole_model_may_be_called_through_a_checkpoint(method, fisher):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, **fisher) for m in (net, twin))
    train(lambda x: checkpoint(net, x, use_reentrant=False), opt, range(3))
    train(twin, other, range(3))
    assert torch.equal(weights(net), weights(twin))


@every_fisher
def test_what_ran_without_gradients_at_the_last_statistics_step_is_forgotten(fisher):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head, self.frozen = mlp(4, 6, 4), mlp(4, 3), True

        def forward(self, x: Tensor) -> Tensor:
            if self.frozen:
                with torch.no_grad():
                    h = self.net(x)
                return self.head(h)
            return self.head(checkpoint(self.net, x, use_reentrant=False))

    net = Model()
    opt = natgrad.KFAC(net, lr=0.1, stats_every=2, refresh_every=2, **fisher)
    train(net, opt, [0])
    net.frozen = False
    train(net, opt, [1])
    assert net.net[0].weight.grad is not None
