"""K-FAC, EKFAC, diagonal, block and dense Fisher of classifiers against nngeometry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from nngeometry.metrics import FIM
from nngeometry.object import PMatBlockDiag, PMatDense, PMatDiag, PMatEKFAC, PMatKFAC
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from tests.networks import mlp, normal, relative

MATRICES = {
    "dense": PMatDense,
    "block": PMatBlockDiag,
    "diagonal": PMatDiag,
    "kfac": PMatKFAC,
    "ekfac": PMatEKFAC,
}
VARIANTS: dict[str, tuple[str, Likelihood, int]] = {
    "categorical": ("classif_logits", Categorical(), 3),
    "bernoulli": ("classif_binary_logits", Bernoulli(), 1),
    "gaussian": ("regression", Gaussian(), 3),
}
every_seed = pytest.mark.parametrize("seed", range(3))
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_structure = pytest.mark.parametrize("structure", MATRICES)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """nngeometry makes constants of its own in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(net: nn.Module, x: Tensor, structure: str, variant: str) -> Tensor:
    loader = DataLoader(TensorDataset(x), batch_size=10)
    made = FIM(net, loader, MATRICES[structure], variant=variant)
    if structure == "ekfac":
        made.update_diag(loader)
    return made.to_torch()


@every_seed
@every_structure
@every_variant
def test_agrees_on_linear_networks(seed, structure, variant):
    name, likelihood, outputs = VARIANTS[variant]
    net, x = mlp(3, 4, 4, outputs, seed=seed), normal(30, 3, seed=seed)
    found = natgrad.fisher(net, x, likelihood, structure=structure).dense()
    assert relative(found, theirs(net, x, structure, name)) < 1e-10


@every_seed
@pytest.mark.parametrize("structure", ["dense", "block", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("padding", [0, 1])
def test_agrees_on_convolutions(seed, structure, padding):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=padding), nn.Tanh(), nn.Conv2d(3, 2, 2, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(8 if padding else 2, 3),
    )  # fmt: skip
    x = normal(30, 2, 4, 4, seed=seed)
    found = natgrad.fisher(net, x, Categorical(), structure=structure).dense()
    assert relative(found, theirs(net, x, structure, "classif_logits")) < 1e-10
