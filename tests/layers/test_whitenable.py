"""What whitening asks of a layer, for every kind that has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natgrad.layers import Whitenable, views_of
from natgrad.layers.whitenable import read_directly
from tests.networks import normal
from tests.whiten.nets import CONVS

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "sequences": (lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    **CONVS,
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str) -> tuple[Whitenable, torch.Tensor]:
    make, shape = LAYERS[kind]
    ([view], _) = views_of(nn.Sequential(make().double()))
    assert isinstance(view, Whitenable)
    return view, normal(6, *shape)


@every_layer
def test_a_weight_by_channel_is_brought_back(kind):
    view, _ = made(kind)
    W = view.by_channel(view.module.weight)
    o, k = view.channels
    assert tuple(W.shape[:-2]) == (*view.groups, o)
    assert W.shape[-1] == k
    assert torch.equal(view.from_channel(W), view.module.weight)


@every_layer
def test_with_its_own_parameters_it_computes_what_the_layer_does(kind):
    view, h = made(kind)
    m = view.module
    assert torch.equal(view.compute(h, m.weight, m.bias), m(h))
    assert not torch.equal(view.compute(h, 2 * m.weight, m.bias), m(h))


@every_layer
def test_features_are_all_entries_of_the_input_and_nothing_of_the_padding(kind):
    view, h = made(kind)
    rows = view.features(h)
    q = view.groups[0] if view.groups else 1
    k = view.channels[1]
    assert tuple(rows.shape) == (*view.groups, h.numel() // (q * k), k)
    assert torch.equal(rows.flatten().sort().values, h.flatten().sort().values)
    assert view.examples(h) == 6


@every_layer
def test_a_one_by_one_map_of_the_features_is_one_of_the_weight(kind):
    """``W (T h) = (W T) h`` wherever padding adds nothing to what is mixed."""
    view, h = made(kind)
    k, axis = view.channels[1], -1 if isinstance(view.module, nn.Linear) else 1
    T = normal(*view.groups, k, k)
    q = view.groups[0] if view.groups else 1
    parts = h.movedim(axis, -1).unflatten(-1, (q, k))
    mixed = torch.einsum("...qk,qlk->...ql", parts, T.reshape(q, k, k)).flatten(-2)
    W = view.by_channel(view.module.weight)
    W = (W.flatten(-3, -2) @ T).reshape(W.shape)
    there = view.compute(mixed.movedim(-1, axis), view.module.weight, None)
    assert torch.allclose(there, view.compute(h, view.from_channel(W), None), atol=1e-12)


@every_layer
def test_an_input_without_a_batch_is_one_example(kind):
    view, h = made(kind)
    if kind == "sequences":
        pytest.skip("a Linear layer takes the first of two dimensions for the batch")
    assert view.examples(h[0]) == 1
    rows = view.features(h)
    assert torch.equal(view.features(h[0]), rows[..., : rows.shape[-2] // 6, :])


def test_weights_that_a_fused_kernel_reads_are_known():
    encoder = nn.TransformerEncoderLayer(4, 2, 8)
    assert read_directly(nn.Sequential(encoder)) == {encoder.linear1, encoder.linear2}
    assert read_directly(nn.Sequential(nn.TransformerDecoderLayer(4, 2, 8))) == set()
