"""The warning where decompositions outweigh training, and that it keeps quiet elsewhere."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical, blocks
from natgrad.curvature import Blockwise, Layer
from natgrad.curvature.layer import new_block
from natgrad.flops import Rows
from natgrad.layers import views_of
from natgrad.pace import SLOWER, emulated, remarked

AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)


def layers_of(model: nn.Module, kind: str, rows: Rows, **kwargs) -> list[Layer]:
    """On the meta device: shapes without weights."""
    views, _ = views_of(model)
    block = getattr(blocks, kind)
    kwargs = {"damping": 0.1, "decay": 0.9, "shared": "expand", **kwargs}
    layers = [Layer(v, new_block(block, v, **kwargs)) for v in views]
    for layer in layers:
        layer.rows = rows
    return layers


def dense(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o, device="meta") for i, o in pairwise(widths)))


def wide() -> nn.Module:
    """512 channels, 3x3: patches of 4608 and a bias."""
    return nn.Sequential(nn.Conv2d(512, 512, 3, padding=1, device="meta"))


def test_a_wide_eigendecomposition_every_ten_steps_is_remarked_upon():
    message = remarked(layers_of(wide(), "EKFAC", Rows(128, 4)), 10)
    assert message is not None
    assert "refresh_every=10" in message
    assert "eigendecomposition of the 4609-wide factor A of layer '0' (EKFAC)" in message
    assert "refresh_every=240 or more" in message  # twice 9 (4609^3 + 512^3) / (6 n t o i)
    assert "KFAC or TKFAC" in message


def test_what_the_message_advises_is_not_remarked_upon():
    layers = layers_of(wide(), "EKFAC", Rows(128, 4))
    assert remarked(layers, 250) is None
    assert remarked(layers_of(wide(), "KFAC", Rows(128, 4)), 10) is None


@pytest.mark.parametrize(
    ("model", "kind", "rows", "every"),
    [(wide(), "EKFAC", Rows(128, 4), 10), (dense(11008, 4096), "KFAC", Rows(64), 1)],
)
def test_it_names_a_width_to_split_at_that_would_do(model, kind, rows, every):
    message = remarked(layers_of(model, kind, rows), every)
    (widest,) = map(int, re.findall(r"widest=(\d+) or less", message))
    assert remarked(layers_of(model, kind, rows, widest=widest), every) is None


def test_where_blocks_would_be_narrow_no_width_is_named():
    message = remarked(layers_of(wide(), "EKFAC", Rows(1)), 1)
    assert "widest" not in message
    assert "widest" not in remarked([exact_layer(100)], 1)


def exact_layer(width: int) -> Layer:
    """All of a layer's entries in one matrix, which is never split."""
    (layer,) = layers_of(dense(width, width), "Exact", Rows(1))
    return layer


def test_blocks_that_are_still_wide_and_warm_bases_are_called_what_they_are():
    message = remarked(layers_of(wide(), "EKFAC", Rows(1), widest=2400), 1)
    assert "eigendecomposition of the 2305-wide blocks on the diagonal of a factor" in message
    message = remarked(layers_of(wide(), "EKFAC", Rows(1), eigen="warm"), 1)
    assert "orthogonal iteration of the 4609-wide factor A" in message


def test_inverses_are_remarked_upon_where_they_are_wide_enough():
    message = remarked(layers_of(dense(11008, 4096), "KFAC", Rows(64)), 1)
    assert message is not None
    assert "inverse of the 11009-wide factor A" in message
    assert "TKFAC" not in message


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC", "TKFAC", "TEKFAC", "Diagonal"])
@pytest.mark.parametrize("widths", [(784, 80, 80, 80, 10), AUTOENCODER])
@pytest.mark.parametrize("batch", [1, 50])
def test_small_models_hear_nothing_even_at_every_step(kind, widths, batch):
    assert remarked(layers_of(dense(*widths), kind, Rows(batch)), 1) is None


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC"])
def test_residual_networks_of_usual_width_hear_nothing(kind):
    model = nn.Sequential(*(nn.Conv2d(c, c, 3, device="meta") for c in (16, 32, 64, 128)))
    assert remarked(layers_of(model, kind, Rows(32, 64)), 1) is None


def test_language_models_at_usual_settings_hear_nothing(monkeypatch):
    layers = layers_of(dense(4096, 4096, 11008, 4096), "EKFAC", Rows(8, 2048))
    assert remarked(layers, 10) is None
    monkeypatch.setitem(SLOWER, False, SLOWER[True])
    assert remarked(layers, 100) is None
    assert remarked(layers, 1) is not None


def test_blocks_that_nobody_counted_are_left_alone():
    layers = layers_of(wide(), "EKFAC", Rows(128, 4))
    layers[0].block.cost = lambda rows: blocks.Block.cost(layers[0].block, rows)
    assert remarked(layers, 1) is None


@pytest.mark.parametrize("refresh_every", [10, 1000])
def test_the_optimizer_warns_once_and_before_it_decomposes(refresh_every, monkeypatch):
    said = []
    monkeypatch.setattr(Blockwise, "refresh", lambda self, due: said.append("decomposed"))
    monkeypatch.setattr(warnings, "warn", lambda message, *args, **kwargs: said.append(message))
    model = nn.Sequential(nn.Conv2d(512, 4, 3), nn.Flatten())
    schedule = {"damping": 0.1, "stats_every": 10, "refresh_every": refresh_every}
    opt = natgrad.EKFAC(model, lr=0.1, likelihood=Categorical(), **schedule)
    F.cross_entropy(model(torch.randn(64, 512, 3, 3)), torch.zeros(64).long()).backward()
    for _ in range(2):
        opt.preconditioner.schedule.forced = True
        opt.step()
    warned = [each for each in said if "4609-wide" in each]
    assert len(warned) == 1
    assert said[0] == warned[0]


@pytest.mark.parametrize(
    ("dtype", "widths", "said"),
    [
        (torch.bfloat16, (784, 500), True),
        (torch.bfloat16, (50, 40), False),  # too small to matter
        (None, (784, 500), False),
        (torch.float64, (784, 500), False),
    ],
)
def test_products_that_are_emulated_are_remarked_upon(dtype, widths, said, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    views, _ = views_of(nn.Linear(*widths))
    given = {"damping": 0.1, "decay": 0.9, "shared": "expand", "product_dtype": dtype}
    layers = [Layer(view, new_block(blocks.KFAC, view, **given)) for view in views]
    message = emulated(layers)
    assert (message is not None) == said
    assert not said or ("bfloat16" in message and "leave product_dtype out" in message)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert emulated(layers) is None
