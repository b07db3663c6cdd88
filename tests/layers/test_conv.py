"""Convolutions read as matrix maps of their patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from natgrad.layers.conv import ConvView
from tests.layers import laws
from tests.networks import normal

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw, dims: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution and the shape of one input."""

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    q = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation = each(1, 3 if dims < 3 else 2), each(1, 2)
    padding = draw(st.sampled_from(["number", "tuple", "same", "valid"]))
    stride = (1,) * dims if padding == "same" else each(1, 2)
    torch.manual_seed(draw(st.integers(0, 99)))
    conv = CONVS[dims](
        q * draw(st.integers(1, 2)), q * draw(st.integers(1, 2)), kernel, stride=stride,
        padding={"number": 1, "tuple": each(0, 2)}.get(padding, padding), dilation=dilation,
        groups=q, bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )  # fmt: skip
    return conv.double(), (conv.in_channels, *each(5, 6 if dims < 3 else 5))


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
        view, h = ConvView("conv", conv), normal(2, *shape)
        W = view.to_matrix({name: p.detach() for name, p in conv.named_parameters()})
        z = view.output_rows(conv(h).detach())
        assert W.shape == view.matrix_shape
        assert torch.allclose(view.input_rows(h) @ W.mT.unsqueeze(-3), z)
        alone = view.input_rows(h[1])  # without a batch: one example
        assert torch.equal(alone, view.input_rows(h)[..., 1:, :, :])
        assert view.output_rows(conv(h[1])).shape == (*view.groups, 1, *z.shape[-2:])

    run()


def test_rows_are_in_the_order_of_unfold():
    conv, h = nn.Conv2d(3, 4, (3, 2), 2, 1, 2, bias=False).double(), normal(2, 3, 7, 6)
    patches = F.unfold(h, (3, 2), 2, 1, 2).mT
    assert torch.equal(ConvView("conv", conv).input_rows(h), patches)


def test_depthwise_is_one_group_per_channel():
    view = ConvView("conv", nn.Conv2d(6, 12, 3, groups=6))
    assert (view.groups, view.shape) == ((6,), (2, 10))
    assert view.input_rows(torch.zeros(5, 6, 4, 4)).shape == (6, 5, 4, 10)


@pytest.mark.parametrize("memory", ["channels last", "strided", "transposed"])
def test_the_memory_of_the_input_does_not_matter(memory):
    conv, h = nn.Conv2d(4, 6, 3, padding=1, groups=2).double(), normal(2, 4, 5, 5)
    view = ConvView("conv", conv)
    other = {
        "channels last": lambda: h.to(memory_format=torch.channels_last),
        "strided": lambda: torch.stack([h, h], -1)[..., 1],
        "transposed": lambda: h.mT.contiguous().mT,
    }[memory]()
    assert torch.equal(view.input_rows(other), view.input_rows(h))
    x = other.detach()
    laws.check(laws.with_head(conv, x), x)


def test_a_network_in_channels_last():
    body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)).double()
    x = normal(3, 2, 5, 5).to(memory_format=torch.channels_last)
    laws.check(laws.with_head(body.to(memory_format=torch.channels_last), x), x)


def test_frozen_parameters_are_left_out():
    conv = nn.Conv2d(4, 4, 3, groups=2).double()
    conv.bias.requires_grad_(False)
    assert ConvView("conv", conv).matrix_shape == (2, 2, 18)
    x = normal(2, 4, 4, 4)
    laws.check_fisher(laws.with_head(conv, x), x, 2)
    conv.weight.requires_grad_(False)
    assert "frozen" in ConvView.refuses(conv)


def test_a_convolution_with_a_forward_of_its_own_is_refused():
    class Standardized(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight - weight.mean(), bias)

    assert ConvView.refuses(Standardized(2, 2, 3)) == (
        "Standardized overrides nn.Conv2d._conv_forward"
    )


def test_half_precision_statistics_are_float32():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).bfloat16()
    for _, sample in laws.tapped(net, torch.ones(3, 2, 4, 4, dtype=torch.bfloat16), None):
        assert sample.a.dtype == sample.g.dtype == torch.float32
