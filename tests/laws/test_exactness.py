"""Where K-FAC is the exact Fisher block, and where it is not.

The cases of "KFAC from scratch" (Dangel et al. 2025, arXiv 2507.05127), through ``fisher()``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Gaussian
from tests import byhand, oracle
from tests.measured import assembled
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS

every_seed = pytest.mark.parametrize("seed", range(4))
sharing = pytest.mark.parametrize("shared", ["expand", "reduce"])


def error(net: nn.Module, x: Tensor, kind: str = "gaussian", shared: str = "expand") -> float:
    """Relative error of K-FAC against the exact blocks."""
    kfac, exact = (
        natgrad.fisher(net, x, LIKELIHOODS[kind], structure=structure, shared=shared).dense()
        for structure in ("kfac", "block")
    )
    return relative(kfac, exact)


class MeanPool(nn.Module):
    """``[n, t, k] -> [n, k]``."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


class SpatialSum(nn.Module):
    """``[n, k, height, width] -> [n, k]``."""

    def forward(self, h: Tensor) -> Tensor:
        return h.sum((-2, -1))


@every_seed
@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_exact_for_one_example_in_any_network(seed, kind, activation):
    net, x = mlp(4, 5, 4, 3, seed=seed, activation=activation), normal(1, 4, seed=seed)
    assert error(net, x, kind) < 1e-12
    assert error(net, normal(12, 4, seed=seed), kind) > 1e-3


@every_seed
@pytest.mark.parametrize("bias", [True, False])
def test_exact_for_deep_linear_networks_with_squared_error(seed, bias):
    net = mlp(4, 5, 6, 3, seed=seed, activation=None, bias=bias)
    assert error(net, normal(7, 4, seed=seed)) < 1e-12


@every_seed
def test_exact_there_means_the_independent_fisher_too(seed):
    net, x = mlp(4, 5, 3, seed=seed, activation=None), normal(7, 4, seed=seed)
    found = natgrad.fisher(net, x, Gaussian(), structure="kfac").dense()
    assert relative(found, assembled(net, oracle.blocks(net, x, "gaussian"))) < 1e-12


@every_seed
def test_expand_is_exact_for_linear_networks_with_one_squared_error_per_position(seed):
    net, x = mlp(3, 4, 2, seed=seed, activation=None), normal(6, 5, 3, seed=seed)
    assert error(net, x) < 1e-12
    assert error(net, x, shared="reduce") > 0.1


@every_seed
@pytest.mark.parametrize("pool", [SumPool, MeanPool])
def test_reduce_is_exact_for_linear_networks_pooled_at_the_end(seed, pool):
    net = nn.Sequential(*mlp(3, 4, 2, seed=seed, activation=None), pool())
    x = normal(6, 5, 3, seed=seed)
    assert error(net, x, shared="reduce") < 1e-12
    assert error(net, x, shared="expand") > 0.1


@every_seed
@sharing
def test_after_a_pooling_expand_and_reduce_agree(seed, shared):
    before, after = mlp(3, 4, seed=seed), mlp(4, 5, 2, seed=seed + 10)
    net, x = nn.Sequential(*before, MeanPool(), *after), normal(6, 5, 3, seed=seed)
    found = natgrad.fisher(net, x, Gaussian(), structure="kfac", shared=shared)
    other = natgrad.fisher(
        net, x, Gaussian(), structure="kfac", shared="reduce" if shared == "expand" else "expand"
    )
    for layer in ("2", "4"):
        assert relative(found.blocks[layer].dense(), other.blocks[layer].dense()) < 1e-12
    assert relative(found.blocks["0"].dense(), other.blocks["0"].dense()) > 0.1


@every_seed
@sharing
def test_expand_before_a_pooling_is_another_matrix_than_reduce_and_neither_is_exact(seed, shared):
    net = nn.Sequential(*mlp(3, 4, seed=seed), nn.Tanh(), MeanPool(), *mlp(4, 2, seed=seed))
    assert error(net, normal(6, 5, 3, seed=seed), shared=shared) > 1e-2


@every_seed
def test_the_empirical_fisher_of_a_deep_linear_network_is_not_its_kfac(seed):
    net, x = mlp(4, 5, 3, seed=seed, activation=None), normal(7, 4, seed=seed)
    y = normal(7, 3, seed=seed + 10)
    kfac, exact = (
        natgrad.fisher(net, x, Gaussian(), kind="empirical", targets=y, structure=s).dense()
        for s in ("kfac", "block")
    )
    assert relative(exact, assembled(net, oracle.empirical_blocks(net, x, y, "gaussian"))) < 1e-12
    assert relative(kfac, exact) > 0.1


@every_seed
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_reduce_is_exact_for_linear_convolutions_summed_over_the_image(seed, padding, bias):
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(2, 3, 3, padding=padding, bias=bias), SpatialSum()]
    net, x = nn.Sequential(*convolutions).double(), normal(6, 2, 5, 5, seed=seed)
    assert error(net, x, shared="reduce") < 1e-12
    assert error(net, x, shared="expand") > 0.1
    a, g = byhand.rows(net, x, "gaussian")["0"]
    found = natgrad.fisher(net, x, Gaussian(), structure="kfac", shared="reduce")
    assert relative(found.blocks["0"].dense(), byhand.exact(a, g)) < 1e-12
