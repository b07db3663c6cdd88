"""Scale and shift of norm layers: exact blocks of each unit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from natgrad import blocks
from natgrad.layers import views_of
from natgrad.layers.norm import NormView
from tests.layers import laws
from tests.networks import normal, relative


def randomized(norm: nn.Module, seed: int = 0) -> nn.Module:
    """Scales, shifts and running statistics that are not ones and zeros."""
    torch.manual_seed(seed)
    norm = norm.double()
    for p in norm.parameters():
        p.data.normal_()
    for name, buffer in norm.named_buffers():
        if name == "running_mean":
            buffer.normal_()
        elif name == "running_var":
            buffer.uniform_(0.5, 2)
    return norm


LAYERS = [
    (lambda: nn.LayerNorm(4), (4,)),
    (lambda: nn.LayerNorm(4), (3, 4)),
    (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    (lambda: nn.LayerNorm((3, 4), bias=False), (3, 4)),
    (lambda: nn.RMSNorm(4), (3, 4)),
    (lambda: nn.RMSNorm((3, 4), eps=1e-3), (2, 3, 4)),
    (lambda: nn.GroupNorm(2, 4), (4,)),
    (lambda: nn.GroupNorm(2, 4), (4, 3)),
    (lambda: nn.GroupNorm(1, 4), (4, 2, 3)),
    (lambda: nn.InstanceNorm1d(3, affine=True), (3, 4)),
    (lambda: nn.InstanceNorm2d(3, affine=True), (3, 2, 3)),
    (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 2)),
    (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (3, 2, 3)),
    (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(), (3, 2, 3)),
    (lambda: nn.BatchNorm1d(4).eval(), (4,)),
    (lambda: nn.BatchNorm1d(4).eval(), (4, 3)),
    (lambda: nn.BatchNorm2d(3).eval(), (3, 2, 3)),
    (lambda: nn.BatchNorm3d(2).eval(), (2, 2, 2, 2)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_laws(make, shape):
    norm, x = randomized(make()), normal(4, *shape)
    training = norm.training
    net = laws.with_head(norm, x)
    assert norm.training == training
    laws.check(net, x)
    (view, _), *_ = laws.tapped(net, x, "gaussian")
    assert view.exact
    assert view.groups == (norm.weight.numel(),)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3), channels=st.integers(2, 3), space=st.lists(st.integers(2, 3), max_size=2)
)
def test_laws_of_group_norm_for_any_shape(n, channels, space):
    x = normal(n, 2 * channels, *space)
    laws.check(laws.with_head(randomized(nn.GroupNorm(2, 2 * channels)), x), x)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_rows_times_the_matrix_are_the_output(make, shape):
    norm, h = randomized(make()), normal(4, *shape)
    view = NormView("norm", norm)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    rows = view.input_rows(h)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    W = view.to_matrix({name: p.detach() for name, p in norm.named_parameters()})
    z = view.output_rows(norm(h).detach())
    assert W.shape == view.matrix_shape
    assert torch.allclose(rows @ W.mT.unsqueeze(-3), z)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.InstanceNorm1d(3, affine=True), (3, 4)),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(), (3, 3, 4)),
        (nn.LayerNorm((3, 4)), (3, 4)),
    ],
)
def test_an_input_without_a_batch_is_one_example(norm, shape):
    norm, h = randomized(norm), normal(*shape)
    view = NormView("norm", norm)
    W = view.to_matrix({name: p.detach() for name, p in norm.named_parameters()})
    z = view.output_rows(norm(h).detach())
    assert z.shape[1] == 1
    assert torch.allclose(view.input_rows(h) @ W.mT.unsqueeze(-3), z)


@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norm_in_training_uses_the_statistics_of_the_batch(tracked):
    x = normal(5, 3, 4)
    norm = randomized(nn.BatchNorm1d(3, track_running_stats=tracked))
    net = laws.with_head(norm, x)
    if not tracked:
        norm.eval()
    laws.check_gradient(net, x)
    laws.check_structures(net, x)
    xhat = (x - x.mean((0, 2), keepdim=True)) / (
        x.var((0, 2), unbiased=False, keepdim=True) + norm.eps
    ).sqrt()
    plain = nn.GroupNorm(1, 3).double()  # scale and shift of an input that is normalised before
    plain.load_state_dict({k: v for k, v in norm.state_dict().items() if k in ("weight", "bias")})

    class Affine(nn.GroupNorm):
        def forward(self, h):
            return h * self.weight[:, None] + self.bias[:, None]

    plain.__class__ = Affine
    outputs, found = laws.jacobians(nn.Sequential(plain, *net[1:]), xhat, len(x))
    found = [{**J, id(norm.weight): J[id(plain.weight)], id(norm.bias): J[id(plain.bias)]}
             for J in found]  # fmt: skip
    for kind in ("categorical", "gaussian"):
        (view, sample), *_ = laws.tapped(net, x, kind)
        expected = laws.exact_block(view, kind, outputs, found)
        dense = laws.block_of(blocks.Exact, view, sample).dense()
        assert relative(dense, expected) < 1e-10


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(4), lambda: nn.BatchNorm1d(4).eval()])
def test_scale_or_shift_alone_may_be_frozen(make, frozen):
    norm, x = randomized(make()), normal(4, 4)
    norm.get_parameter(frozen).requires_grad_(False)
    net = laws.with_head(norm, x)
    (view, *_), left = views_of(net)
    assert left == []
    assert view.matrix_shape == (4, 1, 1)
    laws.check_gradient(net, x)
    laws.check_fisher(net, x, len(x))


def test_layers_that_cannot_be_read_are_refused_with_the_reason():
    class Shifted(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.SyncBatchNorm(3), Shifted(3), nn.BatchNorm1d(3, affine=False))
    views, left = views_of(model)
    assert views == []
    assert {u.name: u.reason for u in left} == {
        "0": "SyncBatchNorm takes its statistics over several processes",
        "1": "Shifted overrides LayerNorm.forward",
    }


def test_half_precision_inputs_are_normalised_in_float32():
    norm = nn.LayerNorm(64).bfloat16()
    h = normal(3, 64).bfloat16()
    rows = NormView("norm", norm).input_rows(h)
    assert rows.dtype == torch.float32
    expected = nn.functional.layer_norm(h.float(), (64,))
    assert torch.equal(rows[..., 0].squeeze(-1).mT, expected)
