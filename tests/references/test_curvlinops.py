"""K-FAC and EKFAC against curvlinops, an implementation that shares nothing with natgrad.

curvlinops sends one column back for all positions of an example together; without mixing of
positions before the loss that is the same matrix, so outputs with positions come from networks that
treat every position alone, and ``reduce`` is compared where there is one loss per example.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from curvlinops import EKFACLinearOperator, FisherType, KFACLinearOperator, KFACType
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from tests.networks import SumPool, mlp, normal, relative

TYPES = {"exact": FisherType.TYPE2, "empirical": FisherType.EMPIRICAL}
OPERATORS = {"kfac": KFACLinearOperator, "ekfac": EKFACLinearOperator}
every_seed = pytest.mark.parametrize("seed", range(2))
every_kind = pytest.mark.parametrize("kind", TYPES)
every_structure = pytest.mark.parametrize("structure", OPERATORS)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


class MeanPool(nn.Module):
    """``[n, t, k] -> [n, k]``."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


class ClassesSecond(nn.Module):
    """``[n, t, k] -> [n, k, t]``."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mT


@dataclass
class Loss:
    """A loss of torch, and how many times the Fisher of the likelihood curvlinops returns."""

    of: type[nn.Module]
    likelihood: Likelihood

    def scale(self, kind: str, reduction: str, f: Tensor, y: Tensor) -> float:
        terms = y.numel() if self.of is nn.CrossEntropyLoss else f[..., 0].numel()
        positions = terms / len(f)
        squared_error = 4.0 if kind == "empirical" else 2.0
        factor = squared_error if self.of is nn.MSELoss else 1.0
        if self.of is not nn.CrossEntropyLoss and reduction == "mean":
            factor /= f.shape[-1] * positions
        if reduction == "sum":
            factor *= terms if self.of is nn.CrossEntropyLoss else len(f)
        return factor

    def targets(self, f: Tensor, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        if self.of is nn.CrossEntropyLoss:
            return torch.randint(f.shape[1], (len(f), *f.shape[2:]), generator=g)
        if self.of is nn.MSELoss:
            return torch.randn(f.shape, dtype=f.dtype, generator=g)
        return torch.randint(2, f.shape, generator=g).to(f)


LOSSES = {
    "categorical": Loss(nn.CrossEntropyLoss, Categorical(class_dim=1)),
    "bernoulli": Loss(nn.BCEWithLogitsLoss, Bernoulli()),
    "gaussian": Loss(nn.MSELoss, Gaussian()),
}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def convolutions(seed: int, **kwargs) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, **kwargs), nn.Tanh(), nn.Conv2d(3, 2, (2, 1), bias=False), nn.Tanh(),
        nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip


def images(seed: int, **kwargs) -> tuple[nn.Module, Tensor]:
    net, x = convolutions(seed, **kwargs), normal(30, 2, 4, 4, seed=seed)
    net(x.float())
    return net.double(), x


ONE_LOSS = {
    "rows": lambda seed: (mlp(3, 4, 2, seed=seed), normal(20, 3, seed=seed)),
    "no bias": lambda seed: (mlp(3, 4, 2, seed=seed, bias=False), normal(20, 3, seed=seed)),
    "sum pool": lambda seed: (
        nn.Sequential(*mlp(3, 4, 2, seed=seed), SumPool()), normal(20, 3, 3, seed=seed)
    ),
    "pool within": lambda seed: (
        nn.Sequential(*mlp(3, 4, seed=seed), nn.Tanh(), MeanPool(), *mlp(4, 2, seed=seed)),
        normal(20, 3, 3, seed=seed),
    ),
    "padded convolution": lambda seed: images(seed, padding=1, stride=2),
    "dilated convolution": lambda seed: images(seed, dilation=2),
}  # fmt: skip


def theirs(
    structure: str, kind: str, shared: str, reduction: str, loss: Loss, net: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    params = list(net.parameters())
    operator = OPERATORS[structure](
        net, loss.of(reduction=reduction), params, batches, fisher_type=TYPES[kind],
        kfac_approx=KFACType(shared), separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    return operator @ torch.eye(sum(p.numel() for p in params), dtype=torch.float64)


def ours(
    structure: str, kind: str, shared: str, loss: Loss, net: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    return natgrad.fisher(
        net, batches, loss.likelihood, structure=structure, kind=kind, shared=shared,
        batch_to_input=lambda batch: batch[0], targets=lambda batch: batch[1],
    ).dense()  # fmt: skip


@every_seed
@every_structure
@every_kind
@every_loss
@reductions
@pytest.mark.parametrize(("network", "shared"), product(ONE_LOSS, ["expand", "reduce"]))
def test_agrees_where_there_is_one_loss_for_each_example(
    seed, structure, kind, loss, reduction, network, shared
):
    net, x = ONE_LOSS[network](seed)
    chosen = LOSSES[loss]
    f = net(x).detach()
    y = chosen.targets(f, seed)
    found = ours(structure, kind, shared, chosen, net, [(x, y)])
    expected = theirs(structure, kind, shared, reduction, chosen, net, [(x, y)])
    assert relative(chosen.scale(kind, reduction, f, y) * found, expected) < 1e-10


@every_seed
@every_kind
@every_loss
@reductions
def test_kfac_expand_agrees_where_every_position_has_its_loss(seed, kind, loss, reduction):
    net, x = mlp(3, 4, 2, seed=seed), normal(20, 3, 3, seed=seed)
    chosen = LOSSES[loss]
    if loss == "categorical":
        net = nn.Sequential(*net, ClassesSecond())
    f = net(x).detach()
    y = chosen.targets(f, seed)
    found = ours("kfac", kind, "expand", chosen, net, [(x, y)])
    expected = theirs("kfac", kind, "expand", reduction, chosen, net, [(x, y)])
    assert relative(chosen.scale(kind, reduction, f, y) * found, expected) < 1e-10


@every_structure
@every_kind
@every_loss
def test_agrees_on_several_batches_of_one_size(structure, kind, loss):
    net, x = ONE_LOSS["pool within"](0)
    chosen = LOSSES[loss]
    f = net(x).detach()
    y = chosen.targets(f, 0)
    batches = list(zip(x.split(5), y.split(5), strict=True))
    found = ours(structure, kind, "expand", chosen, net, batches)
    expected = theirs(structure, kind, "expand", "mean", chosen, net, batches)
    assert relative(chosen.scale(kind, "mean", f, y) * found, expected) < 1e-10
