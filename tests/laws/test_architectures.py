"""Random small networks of all kinds of layers: ``fisher()`` against per-example gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vjp

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.blocks import Diagonal
from natgrad.operator import Fisher
from tests.networks import normal, relative

Make = dict[str, Callable[[], nn.Module]]

ON_FEATURES: Make = {  # [n, 3]
    "linear": lambda: nn.Linear(3, 3),
    "linear without bias": lambda: nn.Linear(3, 3, bias=False),
    "tanh": nn.Tanh,
    "in place": lambda: nn.Sequential(nn.Linear(3, 3), nn.ELU(inplace=True)),
    "softplus": nn.Softplus,
    "layer norm": lambda: nn.LayerNorm(3),
    "batch norm": lambda: nn.BatchNorm1d(3),
    "uncovered": lambda: nn.PReLU(3, init=0.3),
    "dropout": lambda: nn.Dropout(0.5),
}
ON_TOKENS: Make = {  # [n, 3, 4]
    "linear": lambda: nn.Linear(4, 4),
    "gelu": nn.GELU,
    "layer norm": lambda: nn.LayerNorm((3, 4)),
    "rms norm": lambda: nn.RMSNorm(4),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 3, batch_first=True),
    "conv": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
    "batch norm": lambda: nn.BatchNorm1d(3),
}
ON_IMAGES: Make = {  # [n, 2, 3, 3]
    "conv": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "dilated": lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2, bias=False),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate", groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 3, padding=1),
    "linear": lambda: nn.Linear(3, 3),
    "group norm": lambda: nn.GroupNorm(1, 2),
    "batch norm": lambda: nn.BatchNorm2d(2),
    "instance norm": lambda: nn.InstanceNorm2d(2, affine=True),
    "tanh": nn.Tanh,
}
LIKELIHOODS: list[Likelihood] = [Categorical(), Bernoulli(), Gaussian()]


def network(kinds: Make, names: list[str], first: nn.Module, x: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(first, *(kinds[name]() for name in names), nn.Flatten(), nn.LazyLinear(2))
    net(x.float() if x.is_floating_point() else x)
    net = net.double()
    for p in net.parameters():
        p.data.normal_(0, 0.6)
    return net


def brute_force(net: nn.Module, x: Tensor, likelihood: Likelihood) -> Tensor:
    """``1/n sum_n J_n^T R_n J_n``, one backward pass for every example and output."""
    net.eval()
    params = {name: p.detach() for name, p in net.named_parameters()}
    f, pull = vjp(lambda params: functional_call(net, params, (x,)), params)
    net.train()
    units = torch.eye(f.numel(), dtype=f.dtype).view(-1, *f.shape)
    rows = [torch.cat([part.flatten() for part in pull(unit)[0].values()]) for unit in units]
    J, p = torch.stack(rows).view(*f.shape, -1), f.softmax(-1)
    if isinstance(likelihood, Categorical):
        R = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    else:
        s = f.sigmoid()
        R = torch.diag_embed(s * (1 - s) if isinstance(likelihood, Bernoulli) else 0 * f + 1)
    return torch.einsum("ncp,ncd,ndq->pq", J, R, J) / len(x)


def kept(found: Fisher) -> Tensor:
    """Which entries of the matrix the structure has, by the places its blocks claim."""
    mask = torch.zeros(found.size, found.size, dtype=torch.bool)
    for part in found.parts:
        for index in part.index.reshape(-1, *part.index.shape[-2:]):
            rows = index.flatten()
            if isinstance(part.block, Diagonal):
                mask[rows, rows] = True
            else:
                mask[rows[:, None], rows] = True
    return mask


def check(net: nn.Module, x: Tensor, likelihood: Likelihood) -> None:
    F = brute_force(net, x, likelihood)
    batches = [x[:1], x[1:]]
    dense, block, diagonal = (
        natgrad.fisher(net, batches, likelihood, structure=structure)
        for structure in ("dense", "block", "diagonal")
    )
    assert relative(dense.dense(), F) < 1e-10
    assert relative(block.dense(), F * kept(block)) < 1e-10
    assert relative(diagonal.dense(), F * kept(diagonal)) < 1e-10
    left = {id(p) for each in block.uncovered for p in each.module.parameters(recurse=False)}
    covered = torch.cat([torch.full((p.numel(),), id(p) not in left) for p in net.parameters()])
    for found in (block, diagonal):
        assert torch.equal(kept(found).diagonal(), covered)
        assert float(found.trace()) == pytest.approx(float(F.diagonal()[covered].sum()), rel=1e-10)


def layers(kinds: Make) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(kinds)), max_size=4)


seeds = st.integers(0, 99)
likelihoods = st.sampled_from(LIKELIHOODS)


@settings(max_examples=30)
@given(layers(ON_FEATURES), likelihoods, seeds)
def test_networks_on_features(names, likelihood, seed):
    x = normal(3, 2, seed=seed)
    check(network(ON_FEATURES, names, nn.Linear(2, 3), x, seed), x, likelihood)


@settings(max_examples=30)
@given(layers(ON_TOKENS), likelihoods, seeds)
def test_networks_on_tokens(names, likelihood, seed):
    x = torch.tensor([[0, 3, 1], [2, 2, 0], [1, 1, 1]])
    embedding = nn.Embedding(5, 4)
    check(network(ON_TOKENS, names, embedding, x, seed), x, likelihood)


@settings(max_examples=30)
@given(layers(ON_IMAGES), likelihoods, seeds)
def test_networks_on_images(names, likelihood, seed):
    x = normal(3, 1, 4, 4, seed=seed)
    check(network(ON_IMAGES, names, nn.Conv2d(1, 2, 2), x, seed), x, likelihood)


@pytest.mark.parametrize(
    "kinds", [ON_FEATURES, ON_TOKENS, ON_IMAGES], ids=["features", "tokens", "images"]
)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["categorical", "bernoulli", "gaussian"])
def test_every_kind_of_layer_at_once(kinds, likelihood):
    if kinds is ON_TOKENS:
        x, first = torch.tensor([[0, 3, 1], [2, 2, 0], [1, 1, 1]]), nn.Embedding(5, 4)
    elif kinds is ON_FEATURES:
        x, first = normal(3, 2), nn.Linear(2, 3)
    else:
        x, first = normal(3, 1, 4, 4), nn.Conv2d(1, 2, 2)
    check(network(kinds, list(kinds), first, x, 0), x, likelihood)
