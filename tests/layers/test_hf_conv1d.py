"""Hugging Face's Conv1D, by a look-alike: transformers is not needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natgrad.layers import views_of
from natgrad.layers.hf_conv1d import HFConv1DView
from tests.layers import laws
from tests.networks import normal


class Conv1D(nn.Module):
    """``transformers.pytorch_utils.Conv1D`` as of version 4."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


@settings(max_examples=15, deadline=None)
@given(i=st.integers(1, 4), o=st.integers(1, 4), leading=st.lists(st.integers(1, 3), max_size=2))
def test_laws(i, o, leading):
    x = normal(3, *leading, i)
    laws.check(laws.with_head(Conv1D(o, i), x), x)


def test_the_matrix_is_that_of_the_linear_layer():
    layer = Conv1D(2, 3)
    view = HFConv1DView("c_attn", layer)
    W = view.to_matrix(dict(layer.named_parameters()))
    assert torch.equal(W, torch.cat([layer.weight.mT, layer.bias[:, None]], 1))
    assert view.shape == (2, 4)


def test_frozen_parameters():
    layer = Conv1D(2, 3)
    layer.bias.requires_grad_(False)
    assert HFConv1DView("c", layer).shape == (2, 3)
    layer.weight.requires_grad_(False)
    assert views_of(nn.Sequential(layer, nn.Linear(2, 2)))[1][0].reason.startswith("frozen")


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


Stranger.__name__ = "Conv1D"


class Scaled(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Stranger(), "no view for Conv1D"), (Scaled(2, 2), "Scaled overrides Conv1D.forward")],
)
def test_others_of_the_name_are_left_over(module, reason):
    views, [left] = views_of(module)
    assert views == []
    assert left.reason == reason
