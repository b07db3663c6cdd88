"""``fisher()`` on models that are more than a chain, on users' own likelihoods and own blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.blocks import Diagonal
from natgrad.fisher import STRUCTURES
from tests.measured import assembled
from tests.networks import mlp, normal, relative
from tests.oracle import blocks, parameters

every_structure = pytest.mark.parametrize("structure", STRUCTURES)
every_seed = pytest.mark.parametrize("seed", range(3))


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """``d f / d theta`` as ``[n, ..., P]``, in the order of the model's parameters."""
    J = jacrev(lambda p: functional_call(net, p, (x,)))(parameters(net))
    return torch.cat([each.reshape(*each.shape[: -p.ndim], -1) for each, p in pairs(net, J)], -1)


def pairs(net: nn.Module, J: dict[str, Tensor]):
    return [(J[name], p) for name, p in net.named_parameters()]


def weighted(J: Tensor, R: Tensor) -> Tensor:
    """``1/n sum_n J_n^T R_n J_n``, positions flattened into ``n``."""
    J, R = J.flatten(0, -3), R.flatten(0, -3)
    return torch.einsum("ncp,ncd,ndq->pq", J, R, J)


class Scaled(nn.Module):
    """A custom module with parameters of its own, in front of and behind covered layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(normal(3, seed=seed))
        self.inner = mlp(3, 4, 2, seed=seed)
        self.shift = nn.Parameter(normal(1, 2, seed=seed + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale) + self.shift.tanh()


@every_seed
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_dense_covers_parameters_of_custom_modules(seed, kind):
    net, x, y = Scaled(seed), normal(7, 3, seed=seed), normal(7, 2, seed=seed + 1)
    found = natgrad.fisher(net, x, Gaussian(), kind=kind, targets=y, structure="dense")
    J = jacobian(net, x)
    error = net(x).detach() - y
    R = (
        torch.eye(2, dtype=x.dtype).expand(7, 2, 2)
        if kind == "exact"
        else error[..., None] * error.unsqueeze(-2)
    )
    assert relative(found.dense(), weighted(J, R) / 7) < 1e-12
    assert found.uncovered == []


def test_dense_needs_no_covered_layer_at_all():
    net, x = Scaled(), normal(7, 3)
    net.inner.requires_grad_(False)
    found = natgrad.fisher(net, x, Gaussian(), structure="dense").dense()
    J = jacobian(net, x)
    trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()])
    expected = weighted(J * trained, torch.eye(2, dtype=x.dtype).expand(7, 2, 2)) / 7
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name != "dense"])
def test_uncovered_parameters_have_zero_rows_and_are_named(structure):
    net, x = Scaled(), normal(12, 3)
    found = natgrad.fisher(net, x, Gaussian(), structure=structure)
    covered = torch.cat(
        [torch.full((p.numel(),), "inner" in name) for name, p in net.named_parameters()]
    )
    F = found.dense()
    assert float(F[~covered].abs().max()) == float(F[:, ~covered].abs().max()) == 0
    assert float(F[covered][:, covered].diagonal().min()) > 0
    assert "Scaled" in " ".join(left.reason + left.name for left in found.uncovered)


@every_structure
def test_frozen_parameters_have_zero_rows_and_leave_the_rest_as_it_is(structure):
    nets, x = [mlp(3, 4, 4, 2) for _ in range(2)], normal(14, 3)
    nets[0][2].requires_grad_(False)
    nets[0][4].bias.requires_grad_(False)
    frozen = torch.cat(
        [torch.full((p.numel(),), not p.requires_grad) for p in nets[0].parameters()]
    )
    found, whole = (
        natgrad.fisher(net, x, Categorical(), structure=structure).dense() for net in nets
    )
    assert float(found[frozen].abs().max()) == float(found[:, frozen].abs().max()) == 0
    if structure in ("dense", "block", "diagonal"):
        expected = whole * ~frozen * ~frozen[:, None]
        assert relative(found, expected) < 1e-12
    else:
        first = slice(0, 16)
        assert relative(found[first, first], whole[first, first]) < 1e-9


class Twice(nn.Module):
    """One layer used two times in a forward pass."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = mlp(3, 3, seed=seed)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


@every_seed
@pytest.mark.parametrize("structure", ["dense", "block", "diagonal"])
def test_a_layer_used_twice_adds_up_the_gradients_of_its_uses(seed, structure):
    net, x = Twice(seed), normal(9, 3, seed=seed)
    expected = assembled(net, blocks(net, x, "gaussian"))
    if structure == "diagonal":
        expected = torch.diag(expected.diagonal())
    found = natgrad.fisher(net, x, Gaussian(), structure=structure)
    assert relative(found.dense(), expected) < 1e-12


@every_seed
@pytest.mark.parametrize("positions", ["mean", "sum"])
@pytest.mark.parametrize("class_dim", [-1, 1])
def test_positions_of_a_categorical_are_averaged_or_added_and_ignored_ones_left_out(
    seed, positions, class_dim
):
    tokens, x = mlp(3, 4, 2, seed=seed), normal(5, 3, 3, seed=seed)
    y = torch.randint(2, (5, 3), generator=torch.Generator().manual_seed(seed))
    y[0, 1] = y[2] = -1
    net = tokens if class_dim == -1 else nn.Sequential(*tokens, Transposed())
    likelihood = Categorical(class_dim=class_dim, ignore_index=-1, positions=positions)
    found = natgrad.fisher(net, x, likelihood, structure="dense", targets=y).dense()
    p, counted = tokens(x).detach().softmax(-1), y != -1
    R = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    total = counted.sum() if positions == "mean" else len(x)
    expected = weighted(jacobian(tokens, x), R * counted[..., None, None]) / total
    assert float(total) != x.shape[0] * x.shape[1]
    if positions == "sum":
        expected = summed(jacobian(tokens, x), R * counted[..., None, None]) / len(x)
    assert relative(found, expected) < 1e-12


def summed(J: Tensor, R: Tensor) -> Tensor:
    return torch.einsum("ntcp,ntcd,ntdq->pq", J, R, J)


class Transposed(nn.Module):
    """Classes second, as ``CrossEntropyLoss`` takes them."""

    def forward(self, f: Tensor) -> Tensor:
        return f.mT


@every_seed
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()])
def test_other_likelihoods_add_up_all_entries_of_an_output(seed, likelihood):
    net, x = mlp(3, 4, 2, seed=seed), normal(5, 3, 3, seed=seed)
    p = net(x).detach().sigmoid()
    r = p * (1 - p) if isinstance(likelihood, Bernoulli) else torch.ones_like(p)
    expected = summed(jacobian(net, x), torch.diag_embed(r)) / len(x)
    found = natgrad.fisher(net, x, likelihood, structure="dense").dense()
    assert relative(found, expected) < 1e-12


class Poisson(Likelihood):
    """Counts with the logarithm of their rate as output: ``R = diag(rate)``."""

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        return (f.exp() - targets * f).flatten(1).sum(1)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(f.detach().exp(), generator=generator)

    def columns(self, f: Tensor, counted: Tensor | None = None):
        for k in range(f.shape[1]):
            column = torch.zeros_like(f)
            column[:, k] = (f[:, k] / 2).exp()
            yield column


class Drawn(Poisson):
    """The same without ``columns``."""

    columns = Likelihood.columns


@every_structure
def test_a_likelihood_of_ones_own_has_all_three_kinds_of_fisher(structure):
    net, x = mlp(3, 4, 2), normal(12, 3)
    y = torch.poisson(net(x).detach().exp())
    J, rate = jacobian(net, x), net(x).detach().exp()
    exact = natgrad.fisher(net, x, Poisson(), structure=structure).dense()
    drawn = natgrad.fisher(
        net, x, Drawn(), kind="sampled", samples=1500, structure=structure
    ).dense()
    empirical = natgrad.fisher(
        net, x, Drawn(), kind="empirical", targets=y, structure=structure
    ).dense()
    assert relative(drawn, exact) < 0.15
    assert relative(empirical, exact) > 0.15
    if structure == "dense":
        assert relative(exact, weighted(J, torch.diag_embed(rate)) / len(x)) < 1e-12
        score = (rate - y).unsqueeze(-1)
        assert relative(empirical, weighted(J, score * score.mT) / len(x)) < 1e-12


def test_a_likelihood_without_columns_says_to_sample():
    with pytest.raises(NotImplementedError, match=r"Drawn defines no columns\(\).*sampled"):
        natgrad.fisher(mlp(3, 2), normal(4, 3), Drawn())


class Doubled(Diagonal):
    """A block of one's own: twice the diagonal."""

    def product(self, M: Tensor) -> Tensor:
        return 2 * super().product(M)

    def dense(self) -> Tensor:
        return 2 * super().dense()


def test_a_block_class_of_ones_own_is_a_structure():
    net, x = mlp(3, 4, 2), normal(7, 3)
    found = natgrad.fisher(net, x, Categorical(), structure=Doubled)
    diagonal = natgrad.fisher(net, x, Categorical(), structure="diagonal")
    v = normal(found.size)
    assert torch.equal(found.dense(), 2 * diagonal.dense())
    assert relative(found @ v, 2 * (diagonal @ v)) < 1e-14
    assert repr(found) == "Fisher(26x26, 2 blocks: Doubled)"
