"""Our own backward passes: rows are delivered on the way, and are what they were at the end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import checkpoint

from natgrad import Categorical
from natgrad.backward import Backward, reached
from natgrad.layers import views_of
from natgrad.sample import Sample
from natgrad.tap import Tap
from tests.networks import mlp, normal


class Body(nn.Module):
    """Three layers of one width and a head, used as ``body`` says."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (mlp(4, width)[0] for width in (4, 4, 4, 3))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Swallow(torch.autograd.Function):
    """Passes its first input on, and no gradient to the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a chain": lambda n, x: n.head(n.c(n.b(n.a(x).tanh()).tanh()).tanh()),
    "branches": lambda n, x: n.head(n.a(x).tanh() + n.b(x).tanh() * n.c(x)),
    "residual": lambda n, x: n.head(n.b(h := n.a(x)).tanh() + h),
    "used twice": lambda n, x: n.head(n.a(n.b(n.a(x).tanh()).tanh()).tanh()),
    "twice at one depth": lambda n, x: n.head((n.a(x) * n.a(x.cos())).tanh()),
    "the logits are used": lambda n, x: n.head(n.head(x) @ torch.ones(3, 4).double()),
    "one not reached": lambda n, x: n.head(n.a(x).tanh()) + 0 * n.b(x).detach().sum(),
    "one use not reached": lambda n, x: n.head(n.a(x).tanh()) + 0 * n.a(x.cos()).detach().sum(),
    "no gradient for one": lambda n, x: n.head(Swallow.apply(n.a(x).tanh(), n.b(n.c(x)))),
    "no gradient for one use": lambda n, x: n.head(Swallow.apply(n.a(x).tanh(), n.a(n.b(x)))),
    "twins": lambda n, x: n.head(n.b(n.a(x).tanh()).tanh()),
    "checkpointed": lambda n, x: n.head(
        checkpoint(lambda h: n.c(n.b(h).tanh()), n.a(x).tanh(), use_reentrant=False)
    ),
}


def tapped(net: nn.Module, x: Tensor, likelihood: Categorical | None = None) -> Any:
    """A tap that sends back one drawn column, and its samples by name in order of delivery."""
    views, found = views_of(net)[0], {}

    def deliver(index: int, sample: Sample) -> None:
        assert views[index].name not in found, "delivered twice"
        found[views[index].name] = sample

    tap = Tap(net, views, deliver, likelihood=likelihood or Categorical(), seed=3)
    return tap, found


class Together(Backward):
    """Asks the engine for the gradients at all outputs, and delivers when it is done."""

    def __init__(self, root: GradientEdge, uses: Any, done: Any) -> None:
        self.root, self.uses = root, [use for listed in uses.values() for use in listed]

    def listening(self) -> Any:
        return nullcontext()

    def send(self, column: Tensor) -> None:
        inner = [use for use in self.uses if use.edge is not None]
        edges = [use.edge for use in inner]
        found = torch.autograd.grad([self.root], edges, [column], True, allow_unused=True)
        pairs = [*zip(inner, found, strict=True), *((u, column) for u in self.uses if not u.edge)]
        for use, grad in pairs:
            if grad is not None:
                use.reached(grad)


def both_ways(net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The samples delivered on the way, and those delivered at the end."""
    results = []
    for way in (Backward, Together):
        monkeypatch.setattr("natgrad.tap.Backward", way)
        tap, found = tapped(net, x)
        net(x).sum().backward()
        tap.remove()
        results.append(found)
    return results


@pytest.mark.parametrize("body", BODIES)
def test_rows_are_bit_for_bit_those_of_all_gradients_asked_for_together(body, monkeypatch):
    net = Body(BODIES[body])
    if body == "twins":
        net.b.weight, net.b.bias = net.a.weight, net.a.bias
    found, expected = both_ways(net, normal(6, 4), monkeypatch)
    assert found
    assert found.keys() == expected.keys()
    for name, sample in found.items():
        assert torch.equal(sample.a, expected[name].a)
        assert torch.equal(sample.g, expected[name].g)


def test_attention_is_delivered_whole_and_alike(monkeypatch):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()
    net, x = nn.Sequential(layer, *mlp(8, 3)), normal(3, 5, 8)
    found, expected = both_ways(net, x, monkeypatch)
    assert {"0.self_attn.q", "0.self_attn.k", "0.self_attn.v"} <= found.keys() == expected.keys()
    assert all(torch.equal(s.g, expected[name].g) for name, s in found.items())


def test_gradients_are_let_go_of_on_the_way():
    depth = 6
    net, x = nn.Sequential(*(layer for _ in range(depth) for layer in mlp(4, 4))), normal(5, 4)
    held: list[weakref.ref[Any]] = []
    alive = []

    def deliver(index: int, sample: Sample) -> None:
        held.append(weakref.ref(sample.g.untyped_storage()))
        alive.append(sum(each() is not None for each in held))

    tap = Tap(net, views_of(net)[0], deliver, likelihood=Categorical())
    net(x).sum().backward()
    tap.remove()
    assert len(alive) == depth
    assert max(alive) <= 3


def test_several_columns_stay_paired():
    net, x = Body(BODIES["used twice"]), normal(6, 4)
    views, found = views_of(net)[0], {}
    tap = Tap(net, views, lambda k, s: found.setdefault(views[k].name, s), likelihood=Categorical(),
              samples=3, seed=3)  # fmt: skip
    f = net(x)
    f.sum().backward()
    tap.remove()
    columns = list(Categorical().draws(f.detach(), torch.Generator().manual_seed(3), 3))
    assert torch.equal(found["head"].g, torch.stack(columns).unsqueeze(-2))
    assert found["a"].g.shape == (3, 6, 2, 4)


@pytest.mark.parametrize("body", ["a chain", "used twice"])
def test_no_hook_stays_behind_even_after_an_error(body):
    net, x = Body(BODIES[body]), normal(6, 4)
    views = views_of(net)[0]
    calls = []

    def deliver(index: int, sample: Sample) -> None:
        calls.append(index)
        raise RuntimeError("no room")

    tap = Tap(net, views, deliver, likelihood=Categorical())
    f = net(x)
    with pytest.raises(RuntimeError, match="no room"):
        f.sum().backward(retain_graph=True)
    assert not tap.running
    f.sum().backward()  # the graph is still whole, and nobody listens to it any more
    assert len(calls) == 1


def test_a_graph_kept_by_the_user_is_gone_through_once():
    net, x = Body(BODIES["residual"]), normal(6, 4)
    tap, found = tapped(net, x)
    f = net(x)
    f.sum().backward(retain_graph=True)
    assert found.keys() == {"a", "b", "head"}
    f.sum().backward()  # would deliver twice
    tap.remove()


def test_ends_are_the_places_with_no_other_below():
    net, x = Body(BODIES["a chain"]), normal(2, 4)
    first = net.a(x)
    second = net.b(first.tanh())
    beside, apart = net.c(x), net.c(x)
    f = (second + first).sum() * beside.sum()
    nodes = [get_gradient_edge(each).node for each in (first, second, beside, apart)]
    root = get_gradient_edge(f).node
    assert reached(root, nodes) == {nodes[0]: True, nodes[1]: False, nodes[2]: True}


def test_a_deep_graph_is_walked_without_recursion():
    x = torch.ones(2, requires_grad=True)
    end = get_gradient_edge(h := x * 2).node
    for _ in range(20_000):
        h = h + 1
    assert reached(get_gradient_edge(h).node, {end}) == {end: True}
