"""Attention: its projections are covered, though none of them is a module that is called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.blocks import Exact
from natgrad.layers import views_of
from natgrad.tap import Tap
from tests.layers import laws
from tests.networks import normal, relative

ENCODER = {"d_model": 4, "nhead": 2, "dim_feedforward": 5, "dropout": 0.0}


class Pooled(nn.Module):
    """Some attention on ``[n, t, 4]`` with an output for every example."""

    def __init__(self, inner: nn.Module, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.head = inner, nn.Linear(4, 3)
        for p in self.parameters():
            p.data.normal_(0, 0.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(x).tanh().mean(1))

    def run(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Attention(Pooled):
    """Attention with queries, keys and values of its own making."""

    def __init__(self, how: str = "self", **options) -> None:
        super().__init__(nn.MultiheadAttention(4, 2, **options))
        self.how, self.first = how, self.inner.batch_first

    def run(self, x: Tensor) -> Tensor:
        key = x[..., : self.inner.kdim].flip(1) + 1
        value = x[..., : self.inner.vdim] * 2
        q, k, v = {"self": (x, x, x), "shared": (x, key, key), "apart": (x, key, value)}[self.how]
        if not self.first:
            q, k, v = (h if h is None else h.transpose(0, 1) for h in (q, k, v))
            if self.how == "self":
                k = v = q
        z, _ = self.inner(q, key=k, value=v, need_weights=self.how == "apart")
        return z if self.first else z.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("self", {}),
        ("shared", {}),
        ("apart", {}),
        ("apart", {"kdim": 3, "vdim": 2}),
        ("shared", {"kdim": 3, "vdim": 3}),
        ("self", {"add_zero_attn": True}),
    ],
)
def test_laws(how, options, bias, batch_first):
    net = Attention(how, bias=bias, batch_first=batch_first, **options)
    x = normal(2, 3, 4)
    assert [view.name for view in views_of(net)[0]] == [
        "inner.q", "inner.k", "inner.v", "inner.out_proj", "head",
    ]  # fmt: skip
    laws.check(net, x)


def test_a_packed_projection_is_three_blocks_of_its_rows():
    views, _ = views_of(nn.MultiheadAttention(4, 2))
    rows = [[(s.start, s.stop) for s in view.slots().values()] for view in views[:3]]
    assert rows == [[(0, 4)] * 2, [(4, 8)] * 2, [(8, 12)] * 2]
    assert [view.shape for view in views] == [(4, 5)] * 4


def test_linear_is_itself_again_after_every_forward():
    plain, net, x = F.linear, Attention(), normal(2, 3, 4)
    delivered: list[int] = []
    tap = Tap(net, views_of(net)[0], lambda k, _: delivered.append(k), likelihood=Categorical())
    inside: list[bool] = []
    net.inner.register_forward_pre_hook(lambda *_: inside.append(F.linear is plain))
    net(x).sum().backward()
    assert sorted(delivered) == [0, 1, 2, 3, 4]
    with pytest.raises(AssertionError, match="embedding dimension"):
        net(x[..., :2])  # raises inside the attention
    assert F.linear is plain
    net.eval()
    net(x)
    assert inside == [False, False, True]
    tap.remove()
    assert F.linear is plain


def test_two_attentions_of_one_model_are_told_apart():
    net = Pooled(nn.ModuleList([nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2)]))
    net.run = lambda x: net.inner[1](*[net.inner[0](x, x, x)[0]] * 3)[0]
    laws.check(net, normal(2, 3, 4))


def test_a_use_without_a_batch_is_one_example():
    class Alone(Attention):
        def run(self, x: Tensor) -> Tensor:
            return self.inner(x[0], x[0], x[0])[0].unsqueeze(0)

    for batch_first in (True, False):
        laws.check(Alone(batch_first=batch_first), normal(1, 3, 4))


def test_constant_keys_are_left_to_the_plain_gradient():
    net = Attention(add_bias_kv=True, batch_first=True)
    views, [left] = views_of(net)
    assert len(views) == 5
    assert (left.name, left.module) == ("inner", net.inner)
    assert left.reason.startswith("bias_k, bias_v: not in a matrix")
    laws.check_gradient(net, normal(2, 3, 4))
    laws.check_fisher(net, normal(2, 3, 4), 2)


@pytest.mark.parametrize(
    ("frozen", "names", "left"),
    [
        (["in_proj_weight"], ["out_proj"], {"": "in_proj_bias: not in a matrix"}),
        (["in_proj_weight", "in_proj_bias"], ["out_proj"], {}),
        (["out_proj.weight"], ["q", "k", "v"], {"out_proj": "bias: not in a matrix"}),
        (["in_proj_bias", "out_proj.bias"], ["q", "k", "v", "out_proj"], {}),
        (
            ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"],
            [],
            {"": "frozen", "out_proj": "frozen"},
        ),
    ],
)
def test_frozen_parameters(frozen, names, left):
    attention = nn.MultiheadAttention(4, 2)
    for name in frozen:
        attention.get_parameter(name).requires_grad_(False)
    views, uncovered = views_of(attention)
    assert [view.name for view in views] == names
    assert {u.name: u.reason for u in uncovered}.keys() == left.keys()
    assert all(u.reason.startswith(left[u.name]) for u in uncovered)
    net = Attention(batch_first=True)
    for name in frozen:
        net.inner.get_parameter(name).requires_grad_(False)
    laws.check_gradient(net, normal(2, 3, 4))


def test_a_forward_of_its_own_is_refused_with_the_out_projection():
    class Mine(nn.MultiheadAttention):
        def forward(self, x):
            return x

    views, left = views_of(Mine(4, 2))
    assert views == []
    reason = "Mine overrides nn.MultiheadAttention.forward"
    assert {u.name: u.reason for u in left} == {"": reason, "out_proj": reason}


class Encoder(Pooled):
    def run(self, x: Tensor) -> Tensor:
        attention = next(m for m in self.modules() if isinstance(m, nn.MultiheadAttention))
        return (
            self.inner(x)
            if attention.batch_first
            else self.inner(x.transpose(0, 1)).transpose(0, 1)
        )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_stock_encoder_layer_is_covered_whole(batch_first, norm_first):
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=batch_first, norm_first=norm_first)
    net = Encoder(layer)
    covered = {p for view in views_of(net)[0] for p in view.parameters().values()}
    assert covered == set(net.parameters())
    for shape in ((2, 3, 4), (3, 2, 4), (4, 2, 4)):
        laws.check_gradient(net, normal(*shape))
        laws.check_fisher(net, normal(*shape), shape[0])
    laws.check_structures(net, normal(2, 3, 4))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_stack_of_encoder_layers_with_a_last_norm(batch_first):
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=batch_first)
    net = Encoder(nn.TransformerEncoder(layer, 2, nn.LayerNorm(4), enable_nested_tensor=False))
    assert views_of(net)[1] == []
    laws.check_fisher(net, normal(4, 2, 4), 4)


def test_a_whole_transformer_is_covered():
    class Whole(Pooled):
        def run(self, x: Tensor) -> Tensor:
            return self.inner(x, x[:, 1:])

    inner = nn.Transformer(4, 2, 1, 1, 5, dropout=0.0, batch_first=True)
    net = Whole(inner)
    assert views_of(net)[1] == []
    laws.check_gradient(net, normal(2, 3, 4))
    laws.check_fisher(net, normal(2, 3, 4), 2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_an_encoder_layer_trains(fisher, fused):
    net, x = Encoder(nn.TransformerEncoderLayer(**ENCODER, batch_first=True)), normal(16, 3, 4)
    y = (x.sum((1, 2)) > 0).long()
    opt = natgrad.KFAC(
        net, lr=0.3, damping=1e-1, likelihood=Categorical(), fisher=fisher, stats_every=2,
        refresh_every=2, fused=fused,
    )  # fmt: skip
    losses = []
    for _ in range(8):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_fusing_changes_no_step():
    found = []
    for fused in (False, True):
        net, x = Encoder(nn.TransformerEncoderLayer(**ENCODER, batch_first=True)), normal(6, 3, 4)
        opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical(), refresh_every=3, fused=fused)
        for _ in range(5):
            opt.zero_grad()
            F.cross_entropy(net(x), torch.arange(6) % 3).backward()
            opt.step()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert relative(found[1], found[0]) < 1e-9


def test_the_empirical_fisher_does_not_depend_on_who_comes_first():
    blocks = []
    for batch_first in (True, False):
        net = Attention("apart", batch_first=batch_first)
        found = laws.tapped(net, normal(2, 3, 4), None, reduction="mean")
        blocks.append([laws.block_of(Exact, view, sample).dense() for view, sample in found])
    assert all(relative(a, b) < 1e-12 for a, b in zip(*blocks, strict=True))
