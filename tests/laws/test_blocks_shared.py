"""C21 to C25: layers with shared weights, in which the positions of an example add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, Diagonal, Exact
from natgrad.damping import Factored
from natgrad.sample import Sample
from tests import byhand, oracle
from tests.measured import basis, block
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS, columns, samples

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", range(4))
CONVOLUTIONS = {
    "padded": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": (1, 2), "dilation": (1, 2), "bias": False},
}


def tokens(seed: int) -> tuple[nn.Sequential, Tensor]:
    return nn.Sequential(*mlp(3, 4, 2, seed=seed), SumPool()), normal(6, 3, 3, seed=seed)


def images(seed: int, **kwargs) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(seed)
    conv = nn.Conv2d(2, 3, **kwargs)
    x = normal(6, 2, 4, 4, seed=seed)
    size = conv(x.float()).flatten(1).shape[1]
    return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(size, 2)).double(), x


NETWORKS = {"tokens": tokens} | {
    name: lambda seed, kwargs=kwargs: images(seed, **kwargs)
    for name, kwargs in CONVOLUTIONS.items()
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def case(network: str, seed: int, kind: str = "categorical") -> tuple[Sample, Tensor, Tensor]:
    """The first layer's sample, and its rows by hand."""
    net, x = NETWORKS[network](seed)
    return (samples(net, x, LIKELIHOODS[kind])["0"], *byhand.rows(net, x, kind)["0"])


@every_seed
@every_kind
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_C21_rows_of_patches_add_up_to_the_gradients_of_a_convolution(seed, kind, convolution):
    net, x = images(seed, **CONVOLUTIONS[convolution])
    y = oracle.targets(kind, oracle.output(net, x), seed)
    found = samples(net, x, None, lambda f: oracle.mean_nll(kind, f, y))["0"]
    conv = net[0]
    M = conv.weight.grad.flatten(1)
    if conv.bias is not None:
        M = torch.cat([M, conv.bias.grad[:, None]], 1)
    assert relative(found.gradient_sum() / len(x), M) < 1e-12


@every_seed
@every_kind
@every_network
def test_C21_exact_and_diagonal_blocks_are_those_of_the_gradients_by_hand(seed, kind, network):
    sample, a, g = case(network, seed, kind)
    F = byhand.exact(a, g)
    assert relative(block(Exact, sample).dense(), F) < 1e-12
    assert relative(block(Diagonal, sample).dense(), torch.diag(F.diagonal())) < 1e-12


@every_seed
@every_network
def test_C22_the_trace_of_tkfac_is_that_of_the_pooled_block(seed, network):
    sample, a, g = case(network, seed)
    assert sample.positions > 1
    pooled = torch.einsum("nti,cnto->", a.square(), g.square()) / len(a)
    made = block(TKFAC, sample)
    assert float(made.trace()) == pytest.approx(float(pooled), rel=1e-13)
    each = Sample(a.flatten(0, 1)[:, None], g.flatten(1, 2)[:, :, None])
    J = columns(each)  # every position an example of its own
    assert float(J.square().sum() / len(a)) == pytest.approx(float(pooled), rel=1e-13)
    P = torch.einsum("cnto,nti,ntj->ij", g.square(), a, a) / len(a)
    assert relative(made.A.mean(), P) < 1e-12


@every_seed
@every_network
@pytest.mark.parametrize("corrected", [EKFAC, TEKFAC])
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_C23_the_trace_of_a_corrected_block_is_that_of_the_true_block(
    seed, network, corrected, shared
):
    sample, a, g = case(network, seed)
    F = byhand.exact(a, g)
    made = block(corrected, sample, shared=shared)
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-13)
    Q = basis(made)
    assert relative(made.scales().flatten(), (Q.mT @ F @ Q).diagonal()) < 1e-12


@every_seed
@every_network
def test_C24_the_pooled_trace_is_not_that_of_the_true_block(seed, network):
    sample, a, g = case(network, seed)
    ratio = block(TKFAC, sample).trace() / byhand.exact(a, g).trace()
    assert abs(float(ratio) - 1) > 1e-3


@every_seed
@every_network
def test_C25_the_normalisation_of_KFC_is_the_same_product_in_another_split(seed, network):
    sample, a, g = case(network, seed)
    n, t = a.shape[:2]
    Omega = torch.einsum("nti,ntj->ij", a, a) / n
    Gamma = torch.einsum("cnto,cntp->op", g, g) / (n * t)
    made = block(KFAC, sample)
    o, i = made.shape
    assert relative(made.dense(), linalg.kron(Gamma, Omega)) < 1e-13
    ridges = Factored(0.1).ridges(made.A.mean().trace(), made.G.mean().trace(), i, o)
    other = Factored(0.1).ridges(Omega.trace(), Gamma.trace(), i, o)
    assert float(other[0] / ridges[0]) == pytest.approx(t, rel=1e-12)
