"""Layers of all kinds in one network, drawn at random, and batches in unusual places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.layers import views_of
from tests.layers import laws
from tests.networks import normal, relative

ON_IMAGES = {  # of two channels
    "conv": lambda: nn.Conv2d(2, 2, 2, padding=1),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 2),
    "group norm": lambda: nn.GroupNorm(1, 2),
    "instance norm": lambda: nn.InstanceNorm2d(2, affine=True),
    "batch norm": lambda: nn.BatchNorm2d(2).eval(),
    "in place": lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.LeakyReLU(inplace=True)),
    "gelu": lambda: nn.GELU(),
}
ON_SEQUENCES = {  # of four features
    "linear": lambda: nn.Linear(4, 4),
    "layer norm": lambda: nn.LayerNorm(4),
    "rms norm": lambda: nn.RMSNorm(4),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True),
    "in place": lambda: nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(inplace=True)),
    "tanh": lambda: nn.Tanh(),
}


def drawn(kinds: dict, names: list[str], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(*(kinds[name]() for name in names)).double()
    for p in net.parameters():
        p.data.normal_(0, 0.7)
    return net


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(ON_IMAGES)), min_size=1, max_size=4), st.integers(0, 99))
def test_networks_on_images(names, seed):
    x = normal(2, 2, 3, 3)
    net = laws.with_head(nn.Sequential(nn.Conv2d(2, 2, 1), drawn(ON_IMAGES, names, seed)), x)
    laws.check(net, x)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(ON_SEQUENCES)), min_size=1, max_size=4), st.integers(0, 99))
def test_networks_on_tokens(names, seed):
    x = torch.tensor([[0, 3, 1], [2, 2, 0]])
    net = laws.with_head(nn.Sequential(nn.Embedding(4, 4), drawn(ON_SEQUENCES, names, seed)), x)
    laws.check(net, x)


class Frames(nn.Module):
    """A convolution on clips ``[n, t, C, h, w]``, frames flattened into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 2), nn.GroupNorm(1, 2)
        self.head = nn.Linear(2 * 3 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x.flatten(0, 1))).tanh()
        return self.head(h.unflatten(0, x.shape[:2]).flatten(1))


def test_frames_that_are_flattened_into_the_batch_are_put_back_with_their_clip():
    torch.manual_seed(0)
    net, x = Frames().double(), normal(2, 3, 2, 3, 3)
    laws.check_gradient(net, x)
    laws.check_fisher(net, x, 2)
    (_, sample), *_ = laws.tapped(net, x, "gaussian")
    assert (sample.examples, sample.positions) == (2, 12)


class Convnet(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(2, 4), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(), nn.Linear(128, 3),
        )  # fmt: skip
        self.double()


@pytest.mark.parametrize("block", laws.STRUCTURES[1:])
def test_a_network_of_many_kinds_trains(block):
    net, x = Convnet(), normal(30, 1, 6, 6)
    y = (x.sum((1, 2, 3)) > 0).long()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    natural = natgrad.Preconditioner(net, block, damping=1e-1, likelihood=Categorical())
    losses = []
    for _ in range(8):
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        natural.step()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_fusing_changes_no_step_of_any_kind():
    found = []
    for fused in (False, True):
        net, x = Convnet(), normal(6, 1, 6, 6)
        opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical(), refresh_every=3, fused=fused)
        for _ in range(5):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x), torch.arange(6) % 3).backward()
            opt.step()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert relative(found[1], found[0]) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_have_float32_statistics(dtype):
    net, x = Convnet().to(dtype), normal(4, 1, 6, 6).to(dtype)
    for _, sample in laws.tapped(net, x, None):
        assert sample.a.dtype == sample.g.dtype == torch.float32
    assert len(views_of(net)[0]) == 6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("likelihood", [Categorical(), None])
def test_an_operation_in_place_on_a_sequence_changes_no_step(likelihood, fused):
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(in_place), nn.Linear(4, 4), nn.ReLU(in_place), nn.Flatten(),
            nn.Linear(8, 3),
        ).double()  # fmt: skip
        x = normal(6, 2, 3)
        opt = natgrad.KFAC(net, lr=0.1, likelihood=likelihood, refresh_every=3, fused=fused)
        for _ in range(4):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x), torch.arange(6) % 3).backward()
            opt.step()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert relative(found[1], found[0]) < 1e-12
