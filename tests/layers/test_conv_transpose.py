"""Transposed convolutions read as convolutions of the spread input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from natgrad.layers.conv_transpose import ConvTransposeView
from tests.layers import laws
from tests.networks import normal

CONVS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def convolutions(draw, dims: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A transposed convolution and the shape of one input."""

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    q = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, stride, dilation = each(1, 3 if dims < 3 else 2), each(1, 3), each(1, 2)
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    torch.manual_seed(draw(st.integers(0, 99)))
    conv = CONVS[dims](
        q * draw(st.integers(1, 2)), q * draw(st.integers(1, 2)), kernel, stride=stride,
        padding=each(0, 1), output_padding=extra, dilation=dilation, groups=q,
        bias=draw(st.booleans()),
    )  # fmt: skip
    return conv.double(), (conv.in_channels, *each(3, 4 if dims < 3 else 3))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_laws(dims):
    @settings(max_examples=15 if dims < 3 else 6, deadline=None)
    @given(convolutions(dims))
    def run(drawn):
        conv, shape = drawn
        x = normal(2, *shape)
        pool = nn.Sequential(conv, nn.Flatten(2), nn.AdaptiveAvgPool1d(2))
        laws.check(laws.with_head(pool, x), x)

    run()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_patches_times_the_matrix_are_the_output(dims):
    @settings(max_examples=20, deadline=None)
    @given(convolutions(dims))
    def run(drawn):
        conv, shape = drawn
        view, h = ConvTransposeView("conv", conv), normal(2, *shape)
        W = view.to_matrix({name: p.detach() for name, p in conv.named_parameters()})
        z = view.output_rows(conv(h).detach())
        assert W.shape == view.matrix_shape
        assert torch.allclose(view.input_rows(h) @ W.mT.unsqueeze(-3), z)
        alone = view.input_rows(h[1])  # without a batch: one example
        assert torch.equal(alone, view.input_rows(h)[..., 1:, :, :])
        assert view.output_rows(conv(h[1])).shape == (*view.groups, 1, *z.shape[-2:])

    run()


def test_the_matrix_has_a_block_for_each_group():
    view = ConvTransposeView("conv", nn.ConvTranspose2d(4, 6, (3, 2), groups=2))
    assert (view.groups, view.shape) == ((2,), (3, 13))


def test_frozen_parameters_are_left_out():
    conv = nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2).double()
    conv.bias.requires_grad_(False)
    assert ConvTransposeView("conv", conv).matrix_shape == (2, 2, 18)
    x = normal(2, 4, 2, 2)
    laws.check_fisher(laws.with_head(conv, x), x, 2)
    conv.weight.requires_grad_(False)
    assert "frozen" in ConvTransposeView.refuses(conv)
