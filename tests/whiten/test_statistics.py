"""Means and covariances of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from natgrad.batches import Batches
from natgrad.whiten import PRONG, statistics, whiten
from natgrad.whiten.statistics import RowMoments, statistics_of
from tests.whiten.nets import mlp, normal, relative


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    groups=st.sampled_from([(), (2,)]), k=st.integers(1, 4),
)  # fmt: skip
def test_any_parts_give_the_moments_of_the_whole(sizes, groups, k):
    x = normal(*groups, sum(sizes), k)
    moments = RowMoments()
    for part in x.split(sizes, dim=-2):
        moments.add(part)
    mean = x.mean(-2)
    centred = x - mean.unsqueeze(-2)
    assert torch.allclose(moments.mean, mean, atol=1e-12)
    assert torch.allclose(moments.covariance(), centred.mT @ centred / sum(sizes), atol=1e-12)
    assert torch.allclose(moments.second_moment(), x.mT @ x / sum(sizes), atol=1e-12)
    assert float(moments.count) == sum(sizes)


def test_many_rows_are_taken_in_chunks(monkeypatch):
    x, whole, parts = normal(50, 3), RowMoments(), RowMoments()
    whole.add(x)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    parts.add(x)
    assert torch.allclose(whole.covariance(), parts.covariance(), atol=1e-13)


def test_a_mean_far_from_zero_cancels_nothing():
    x, moments = normal(200, 3).float().double(), RowMoments()
    for part in (x + 1e7).split(50):
        moments.add(part)
    assert relative(moments.covariance(), torch.cov(x.mT, correction=0)) < 1e-8


def test_rows_that_are_not_finite_do_not_count():
    moments = RowMoments()
    assert moments.empty
    moments.add(torch.full((2, 3), torch.inf))
    assert moments.empty
    moments.add(normal(5, 3))
    moments.add(torch.full((2, 3), torch.nan))
    assert float(moments.count) == 5
    assert moments.covariance().isfinite().all()


def test_state_comes_back_bit_by_bit_and_is_a_copy():
    one, other = RowMoments(), RowMoments()
    one.add(normal(5, 3))
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    for moments in (one, other):
        moments.add(normal(4, 3, seed=1))
    assert torch.equal(one.covariance(), other.covariance())
    assert RowMoments().state_dict() == {}


class Modes(nn.Sequential):
    """Remembers in which modes its children were called."""

    def forward(self, h):
        self.seen = [module.training for module in self], torch.is_grad_enabled()
        return super().forward(h)


def test_a_pass_is_in_eval_mode_without_gradients_and_leaves_every_mode():
    net = Modes(nn.Linear(4, 5), nn.Dropout(0.9), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    net[2].eval()
    state = {key: x.clone() for key, x in net[2].state_dict().items()}
    whitener = whiten(net, PRONG())
    statistics_of(net, whitener.layers, Batches(normal(9, 4)), None)
    assert net.seen == ([False] * 4, False)
    assert [m.training for m in net] == [True, True, False, True]
    assert all(torch.equal(x, state[key]) for key, x in net[2].state_dict().items())
    assert all(layer.heard is None for layer in whitener.layers.values())


def test_an_error_in_a_pass_leaves_every_mode_too():
    net = mlp(4, 3)
    whitener = whiten(net, PRONG())
    with pytest.raises(RuntimeError):
        statistics_of(net, whitener.layers, Batches(normal(9, 5)), None)
    assert net.training
    assert net[0].heard is None


class Pair(nn.Module):
    """Two inputs, the second without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x, scale):
        return self.layer(x * scale)


@pytest.mark.parametrize("samples", [None, 1, 4, 7, 99])
@pytest.mark.parametrize("kind", ["tensor", "list", "tuple", "mapping"])
def test_no_more_examples_are_used_than_asked_for(samples, kind):
    x, scale = normal(10, 3), torch.full((3,), 2.0, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 2)).double() if kind in ("tensor", "list") else Pair()
    data = {
        "tensor": x, "list": list(x.split(4)), "tuple": (x, scale),
        "mapping": {"x": x, "scale": scale},
    }[kind]  # fmt: skip
    whitener = whiten(net, PRONG())
    [found] = statistics_of(net, whitener.layers, Batches(data), samples).values()
    used = x[:samples] * (1 if kind in ("tensor", "list") else 2)
    assert torch.allclose(found.inputs.mean, used.mean(0), atol=1e-12)
    assert float(found.inputs.count) == min(samples or 10, 10)


def test_a_layer_that_is_called_twice_pools_its_inputs():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.again = self.layer

        def forward(self, x):
            return self.again(self.layer(x).tanh())

    net, x = Twice().double(), normal(20, 3)
    h = torch.cat([x, net.layer(x).tanh()]).detach()
    whitener = whiten(net, PRONG(), x)
    assert list(whitener.layers) == ["layer"]
    assert net.again is net.layer
    assert torch.allclose(net.layer.c, h.mean(0), atol=1e-12)


def test_a_pass_with_plain_weights_sees_the_same_and_leaves_the_layers_as_they_were():
    net, data = mlp(4, 6, 5, 3), normal(30, 4)
    layers = whiten(net, PRONG(), data).layers
    plain = {name: layer.plain() for name, layer in layers.items()}
    for P in (layer.P for layer in layers.values()):
        assert P.isfinite().all()
    expected = statistics_of(net, layers, Batches([data, data]), None)
    found = statistics_of(net, layers, Batches([data, data]), None, plain)
    for name, seen in found.items():
        assert relative(seen.inputs.covariance(), expected[name].inputs.covariance()) < 1e-12
    with pytest.raises(RuntimeError, match="shape"):
        statistics_of(net, layers, Batches([data[:, :2]]), None, plain)
    assert all(layer.held is None for layer in layers.values())
