"""Taps: what they leave alone, and when they listen at all."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.layers import views_of
from natgrad.tap import Tap
from tests.networks import mlp, normal

LISTENING = [
    {"likelihood": Categorical()},
    {"likelihood": Categorical(), "fisher": "exact"},
    {"likelihood": None},
]
every_fisher = pytest.mark.parametrize("fisher", LISTENING, ids=["sampled", "exact", "empirical"])


def tap(net: nn.Module, **kwargs) -> tuple[Tap, list[str]]:
    """A tap and the names of the layers that delivered."""
    views, delivered = views_of(net)[0], []
    return Tap(net, views, lambda k, _: delivered.append(views[k].name), **kwargs), delivered


def noisy() -> nn.Sequential:
    return nn.Sequential(*mlp(4, 6), nn.Dropout(0.5), *mlp(6, 3))


@every_fisher
def test_gradients_and_the_global_random_state_are_bit_identical(fisher):
    results = []
    for listening in (False, True):
        torch.manual_seed(7)
        net, x = noisy(), normal(8, 4)
        torch.manual_seed(8)
        delivered = tap(net, **fisher)[1] if listening else None
        for _ in range(2):  # gradients accumulate
            loss = F.cross_entropy(net(x), torch.zeros(8, dtype=torch.long))
            loss.backward()
        assert delivered is None or sorted(delivered) == ["0", "0", "2", "2"]
        results.append([loss.detach(), *(p.grad for p in net.parameters()), torch.get_rng_state()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


class Products(TorchDispatchMode):
    """Counts the matrix products whose result has a given shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in str(func) and tuple(result.shape) == self.shape:
            self.count += 1
        return result


@every_fisher
def test_the_extra_backward_passes_compute_no_weight_gradient(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    _, delivered = tap(net, **fisher)
    fired: list[int] = []
    for p in net.parameters():
        p.register_hook(lambda grad, p=p: fired.append(id(p)))
    with Products((6, 4)) as first, Products((3, 6)) as last:
        F.cross_entropy(net(x), torch.zeros(8, dtype=torch.long)).backward()
    assert sorted(fired) == sorted(id(p) for p in net.parameters())
    assert (first.count, last.count) == (1, 1)
    assert len(delivered) == 2


@every_fisher
def test_extra_work_happens_on_statistics_steps_alone(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    opt = natgrad.KFAC(net, lr=0.1, stats_every=3, refresh_every=3, **fisher)
    delivered: list[int] = []
    observe = opt.preconditioner.tap.deliver
    opt.preconditioner.tap.deliver = lambda k, s: (delivered.append(k), observe(k, s))
    counts, passes = [], []
    for _ in range(7):
        opt.zero_grad()
        with Products((8, 6)) as hidden:  # one forward; one backward for each output gradient
            F.cross_entropy(net(x), torch.zeros(8, dtype=torch.long)).backward()
        opt.step()
        counts.append(len(delivered))
        passes.append(hidden.count)
    assert counts == [2, 2, 2, 4, 4, 4, 6]
    extra = 0 if fisher["likelihood"] is None else 3 if "fisher" in fisher else 1
    assert passes == [2 + extra if k % 3 == 0 else 2 for k in range(7)]


@every_fisher
def test_evaluation_leaves_the_statistics_alone(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    _, delivered = tap(net, **fisher)
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    net.eval()
    net(x).sum().backward()
    assert delivered == []
    net.train()
    net(x).exp().sum().backward()
    assert sorted(delivered) == ["0", "2"]


@every_fisher
def test_the_loop_may_evaluate_between_a_forward_and_its_backward(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    _, delivered = tap(net, **fisher)
    f = net(x)
    with torch.no_grad():
        net(2 * x)
    f.exp().sum().backward()
    assert sorted(delivered) == ["0", "2"]


@every_fisher
def test_two_forward_passes_before_one_backward_are_two_samples(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    _, delivered = tap(net, **fisher)
    (net(x).exp().sum() + net(2 * x).exp().sum()).backward()
    assert sorted(delivered) == ["0", "0", "2", "2"]


@every_fisher
def test_a_graph_walked_twice_is_one_sample(fisher):
    net, x = mlp(4, 6, 3), normal(8, 4)
    _, delivered = tap(net, **fisher)
    loss = net(x).exp().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert sorted(delivered) == ["0", "2"]


class Buffer(bytearray):
    """Memory whose release can be watched."""


def watched(n: int, k: int) -> tuple[Tensor, weakref.ref]:
    memory = Buffer(8 * n * k)
    return torch.frombuffer(memory, dtype=torch.float64).view(n, k), weakref.ref(memory)


@pytest.mark.parametrize("backward", [False, True], ids=["forward alone", "with backward"])
@pytest.mark.parametrize("widths", [(4, 3), (4, 6, 3)])
@every_fisher
def test_a_pass_is_freed_with_its_output_and_without_the_garbage_collector(
    fisher, widths, backward
):
    net = mlp(*widths)
    tap(net, **fisher)
    x, memory = watched(8, 4)
    gc.collect()
    gc.disable()
    try:
        f = net(x)
        if backward:
            f.exp().sum().backward()
        del x, f
        assert memory() is None
    finally:
        gc.enable()


def test_a_forward_that_raises_leaves_nothing_behind():
    class Fails(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            raise ValueError("on purpose")

    net = nn.Sequential(*mlp(4, 3), Fails())
    _, delivered = tap(net, likelihood=Gaussian())
    x, memory = watched(8, 4)
    with pytest.raises(ValueError, match="on purpose"):
        net(x)
    del x
    gc.collect()
    assert memory() is None
    net[0](normal(8, 4)).sum().backward()  # a part of the model, not the model
    assert delivered == []


def test_logits_changed_in_place_are_refused():
    net = mlp(4, 3)
    tap(net, likelihood=Categorical())
    f = net(normal(8, 4))
    f.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place before backward"):
        f.exp().sum().backward()


def test_logits_changed_out_of_place_are_not():
    net = mlp(4, 3)
    _, delivered = tap(net, likelihood=Categorical())
    (net(normal(8, 4)) * 2).exp().sum().backward()
    assert delivered == ["0"]


@every_fisher
def test_a_removed_tap_hears_nothing(fisher):
    net = mlp(4, 6, 3)
    found, delivered = tap(net, **fisher)
    found.remove()
    net(normal(8, 4)).exp().sum().backward()
    assert delivered == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_generator_goes_on_where_a_saved_tap_stopped():
    net, x = mlp(4, 3), normal(8, 4)
    views, drawn = views_of(net)[0], []
    found = Tap(net, views, lambda _, s: drawn.append(s.g), likelihood=Categorical(), seed=4)
    net(x).exp().sum().backward()
    saved = found.draws.state_dict()
    for _ in range(2):
        net(x).exp().sum().backward()
        found.draws.load_state_dict(saved)
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
