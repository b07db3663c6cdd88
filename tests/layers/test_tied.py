"""Parameters in several places: further positions of one layer, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from natgrad import KFAC, Categorical
from natgrad.layers import LayerView, views_of
from tests.layers import laws
from tests.networks import normal, relative


def reasons(model: nn.Module) -> dict[str, str]:
    return {left.name: left.reason for left in views_of(model)[1]}


class Tied(nn.Module):
    """Two modules with the same parameters, and a forward."""

    def __init__(
        self, make: Callable[[], nn.Module], body: Callable[[nn.Module, nn.Module, Tensor], Tensor],
        width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.body = make(), make(), body
        self.head = nn.Linear(width, 3)
        for name, p in self.one.named_parameters():
            p.data.normal_(0, 0.5)
            holder, _, key = name.rpartition(".")
            setattr(self.two.get_submodule(holder), key, p)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.one, self.two, x).tanh().flatten(1))


CASES = {
    "Linear": (
        lambda: nn.Linear(4, 4), lambda a, b, x: b(a(x).tanh()) + x, 8, (3, 2, 4),
    ),
    "Linear without bias": (
        lambda: nn.Linear(4, 4, bias=False), lambda a, b, x: a(b(a(x).tanh()).tanh()), 4, (3, 4),
    ),
    "Conv2d": (
        lambda: nn.Conv2d(2, 2, 3, padding=1), lambda a, b, x: b(a(x).tanh()), 18, (2, 2, 3, 3),
    ),
    "LayerNorm": (
        lambda: nn.LayerNorm(4), lambda a, b, x: b(a(x).tanh()), 8, (3, 2, 4),
    ),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda a, b, x: b(*[a(x, x, x)[0]] * 3)[0], 12, (2, 3, 4),
    ),
}  # fmt: skip


def case(name: str) -> tuple[Tied, Tensor]:
    make, body, width, shape = CASES[name]
    return Tied(make, body, width), normal(*shape)


@pytest.mark.parametrize("name", CASES)
def test_all_uses_of_the_same_parameters_are_one_layer(name):
    net, x = case(name)
    views, left = views_of(net)
    assert left == []
    assert all(view.name.startswith(("one", "head")) for view in views)
    assert all(len(view.twins) == 1 for view in views if view.name != "head")
    laws.check(net, x)
    (view, sample), *_ = laws.tapped(net, x, "gaussian")
    assert sample.positions > view_positions(view, x)


def view_positions(view: LayerView, x: Tensor) -> int:
    """Positions of a single use."""
    if isinstance(view.module, nn.MultiheadAttention):
        return x.shape[1]
    return view.input_rows(x).shape[-2]


def test_twins_may_see_different_positions():
    def make() -> nn.Module:
        return nn.Conv1d(2, 2, 3)

    net = Tied(make, lambda a, b, x: torch.cat([a(x), b(x)], -1), 18)
    net.two.stride, net.two.padding, net.two._reversed_padding_repeated_twice = (2,), (1,), [1, 1]
    laws.check(net, normal(2, 2, 7))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_tied_layers_train_as_a_module_that_is_used_twice(name, fused):
    net, x = case(name)
    again, _ = case(name)
    again.two = again.one
    assert relative(trained(net, x, fused), trained(again, x, fused=False)) < 1e-9


def trained(net: nn.Module, x: Tensor, fused: bool) -> Tensor:
    opt = KFAC(net, lr=0.1, likelihood=Categorical(), refresh_every=2, fused=fused)
    for _ in range(4):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 3).backward()
        opt.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_weight_with_two_biases_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    net[2].weight = net[0].weight
    assert [view.name for view in views_of(net)[0]] == ["3"]
    assert reasons(net) == {
        "0": "shares weight with 2, but not bias",
        "2": "shares weight with 0, but not bias",
    }


def test_an_embedding_that_is_the_output_layer_too_is_refused():
    net = nn.ModuleDict({"wte": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["wte"].weight
    assert views_of(net)[0] == []
    assert reasons(net) == {
        "wte": "shares weight with head, which reads it as another matrix",
        "head": "shares weight with wte, which reads it as another matrix",
    }


def test_a_module_that_nothing_reads_spoils_the_layer_it_shares_with():
    class Head(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.matrix = weight

    body = nn.Linear(3, 3)
    net = nn.ModuleDict({"body": body, "head": Head(body.weight), "free": nn.Linear(2, 2)})
    assert [view.name for view in views_of(net)[0]] == ["free"]
    assert reasons(net) == {
        "body": "shares weight with head, which is not covered: no view for Head",
        "head": "no view for Head",
    }


def test_a_third_module_with_the_weight_alone_spoils_two_that_share_all():
    net = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    net[1].weight, net[1].bias, net[2].weight = net[0].weight, net[0].bias, net[0].weight
    assert views_of(net)[0] == []
    assert set(reasons(net)) == {"0", "1", "2"}


def test_thirds_of_one_parameter_are_not_shared():
    attention = nn.MultiheadAttention(4, 2)
    views, left = views_of(nn.ModuleList([attention]))
    assert (len(views), left) == (4, [])


def test_one_projection_tied_with_a_linear_layer_leaves_the_others_covered():
    net = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 2, kdim=3), "other": nn.Linear(4, 4)}
    )
    net["other"].weight = net["attention"].q_proj_weight
    assert [view.name for view in views_of(net)[0]] == [
        "attention.k", "attention.v", "attention.out_proj",
    ]  # fmt: skip
    assert set(reasons(net)) == {"attention.q", "other"}
