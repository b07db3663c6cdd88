"""Gram matrices of rows, and block-diagonal matrices against their dense form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad import split as split_module
from natgrad.split import BlockDiagonal, Split, flat, gram
from tests.networks import normal, relative

D = 11


def blocks(seed: int = 0, batch: tuple[int, ...] = ()) -> BlockDiagonal:
    split = Split.of(D, 4)
    return split.matrix(normal(*batch, split.entries, seed=seed))


@given(d=st.integers(1, 20), block=st.integers(1, 9), n=st.integers(0, 5), weighted=st.booleans())
def test_blocks_below_the_diagonal_and_their_mirror_images_are_the_product(d, block, n, weighted):
    before = split_module.GRAM_BLOCK, split_module.GRAM_ROWS
    split_module.GRAM_BLOCK, split_module.GRAM_ROWS = block, 0
    try:
        X, w = normal(n, d), normal(n, seed=1).abs() if weighted else None
        found = gram(X, w)
    finally:
        split_module.GRAM_BLOCK, split_module.GRAM_ROWS = before
    expected = X.mT @ (X if w is None else X * w.unsqueeze(-1))
    assert relative(found + 1, expected + 1) < 1e-14


@pytest.mark.parametrize("widest", [1, 3, 4, 10])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_of_a_split_gram_matrix_the_blocks_on_the_diagonal_are_formed(widest, batch):
    X, split = normal(*batch, 6, D), Split.of(D, widest)
    found = split.matrix(gram(X, split=split)).dense()
    inside = split.matrix(torch.ones(split.entries)).dense()
    assert relative(found, (X.mT @ X) * inside) < 1e-14
    assert float(inside.sum()) == split.entries


@pytest.mark.parametrize("batch", [(), (2,)])
def test_products_are_those_of_the_dense_matrix(batch):
    B, C = blocks(0, batch), blocks(1, batch)
    left, right = normal(3, *batch, 5, D), normal(3, *batch, D, 5)
    assert relative(left @ B, left @ B.dense()) < 1e-14
    assert relative(B @ right, B.dense() @ right) < 1e-14
    assert relative((B @ C).dense(), B.dense() @ C.dense()) < 1e-14
    assert relative((B.mT @ C).dense(), B.dense().mT @ C.dense()) < 1e-14


def test_rows_with_dimensions_of_their_own_are_multiplied_by_each_group():
    B, rows = blocks(0, (2,)), normal(2, 3, 4, 5, D)
    found = rows @ B.unsqueezed(2)
    assert relative(found, rows @ B.dense()[:, None, None]) < 1e-14
    assert relative(rows[0] @ blocks().unsqueezed(2), rows[0] @ blocks().dense()) < 1e-14


def test_it_is_read_as_the_matrix_it_stands_for():
    B = blocks(0, (2,))
    assert (B.shape, B.ndim) == ((2, D, D), 3)
    assert torch.equal(B.square().dense(), B.dense().square())
    assert B.to(torch.float32).dense().dtype == torch.float32
    assert torch.equal(Split.of(D, 4).matrix(B.flat()).dense(), B.dense())
    assert torch.equal(flat(B.clone()), flat(B))
    traces = B.per_block(lambda x: x.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert traces.shape == (2, 3)
    assert relative(traces.sum(-1), B.dense().diagonal(dim1=-2, dim2=-1).sum(-1)) < 1e-14
    assert torch.equal(B.joined(lambda x: x.diagonal(dim1=-2, dim2=-1)),
                       B.dense().diagonal(dim1=-2, dim2=-1))  # fmt: skip


def test_its_stacks_are_views_of_what_is_kept():
    split = Split.of(D, 4)
    kept = torch.zeros(split.entries)
    split.matrix(kept).stacks[0].fill_(1)
    assert float(kept.sum()) == 2 * 16
