"""Embeddings read as matrix maps of unit vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natgrad.blocks import EKFAC, KFAC
from natgrad.layers import views_of
from natgrad.layers.embedding import EmbeddingView
from natgrad.sample import OneHot
from tests.layers import laws
from tests.networks import relative


def indices(size: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(2, 6),
    width=st.integers(1, 3),
    leading=st.lists(st.integers(1, 3), max_size=2),
    padding=st.sampled_from([None, 0, -1]),
)
def test_laws(size, width, leading, padding):
    layer, x = nn.Embedding(size, width, padding_idx=padding), indices(size, 4, *leading)
    x.view(-1)[0] = size - 1 if padding == 0 else 0  # at least one row that counts
    laws.check(laws.with_head(layer, x), x)


def test_rows_are_indices_and_the_padding_is_a_row_of_zeros():
    view = EmbeddingView("wte", nn.Embedding(5, 2, padding_idx=3))
    rows = view.input_rows(torch.tensor([[1, 3, 1], [4, 0, 3]]))
    assert isinstance(rows, OneHot)
    assert torch.equal(rows.indices, torch.tensor([[1, -1, 1], [4, 0, -1]]))
    assert (rows.size, view.shape, view.diagonal_input) == (5, (2, 5), True)


def test_a_vector_of_indices_is_a_batch_of_single_positions():
    view = EmbeddingView("wte", nn.Embedding(5, 2))
    assert view.input_rows(torch.tensor([1, 2, 3])).shape == (3, 1, 5)
    assert view.output_rows(torch.zeros(3, 2)).shape == (3, 1, 2)
    assert view.input_rows(torch.tensor(1)).shape == (1, 1, 5)
    net = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3)).double()
    (_, empirical), *_ = laws.tapped(net, indices(5, 4), None, reduction="mean")
    (_, summed), *_ = laws.tapped(net, indices(5, 4), None, reduction="sum")
    assert torch.equal(empirical.g, 4 * summed.g)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparse": True}, "sparse=True"),
        ({"max_norm": 1.0}, "max_norm"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq=True"),
    ],
)
def test_options_that_change_the_gradient_are_refused(options, reason):
    _, [left] = views_of(nn.Sequential(nn.Embedding(5, 2, **options), nn.Linear(2, 2)))
    assert left.name == "0"
    assert reason in left.reason


def test_blocks_never_write_the_vocabulary_out():
    view, size = EmbeddingView("wte", nn.Embedding(50_000, 4)), 50_000
    net = nn.Sequential(view.module, nn.Flatten(), nn.Linear(12, 3)).double()
    (_, sample), *_ = laws.tapped(net, indices(size, 8, 3), "categorical")
    for Structure in (KFAC, EKFAC):
        block = laws.block_of(Structure, view, sample)
        held = max(buffer.numel() for buffer in block.buffers())
        assert held <= 4 * size


class Positions(nn.Module):
    """Tokens and their positions, whose embedding has no batch dimension."""

    def __init__(self, length: int, batched: bool) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(6, 3), nn.Embedding(length, 3)
        self.head, self.batched = nn.Linear(3 * length, 2), batched

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        h = self.wte(x) + self.wpe(places.unsqueeze(0) if self.batched else places)
        return self.head(h.tanh().flatten(1))


@pytest.mark.parametrize("batched", [True, False])
def test_positions_without_a_batch_have_the_right_sampled_fisher(batched):
    net, x = Positions(3, batched).double(), indices(6, 4, 3)
    outputs, found = laws.jacobians(net, x, len(x))
    sampled = {}
    for seed in range(400):
        for view, sample in laws.tapped(net, x, "gaussian", fisher="sampled", seed=seed):
            F = laws.block_of(laws.blocks.Exact, view, sample).dense()
            sampled[view.name] = sampled.get(view.name, 0) + F / 400
    for view in views_of(net)[0]:
        expected = laws.exact_block(view, "gaussian", outputs, found)
        assert relative(sampled[view.name], expected) < 0.2, view


def test_positions_without_a_batch_reproduce_the_gradient():
    x = indices(6, 4, 3)
    for batched in (True, False):
        laws.check_gradient(Positions(3, batched).double(), x)


def test_an_embedding_is_a_linear_layer_on_unit_vectors():
    layer, x = nn.Embedding(4, 3).double(), indices(4, 5, 2)
    dense = nn.Linear(4, 3, bias=False).double()
    dense.weight.data = layer.weight.detach().mT.clone()
    head = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    one_hot = torch.eye(4, dtype=torch.float64)[x]
    (view, a), *_ = laws.tapped(nn.Sequential(layer, head), x, "categorical")
    (_, b), *_ = laws.tapped(nn.Sequential(dense, head), one_hot, "categorical")
    assert torch.equal(a.g, b.g)
    for Structure in laws.STRUCTURES[:3]:
        found = laws.block_of(Structure, view, a).dense()
        expected = Structure((3, 4), damping=1e-2, dtype=torch.float64)
        expected.observe(b)
        for moment in expected.moments():
            moment.commit()
        assert relative(found, expected.dense()) < 1e-12
