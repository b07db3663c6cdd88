"""A1 to A10: what the Fisher matrix is, through natgrad's likelihoods and taps."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian

from natgrad import Categorical, linalg
from tests import oracle
from tests.networks import mlp, normal, relative
from tests.tapped import LIKELIHOODS, fisher, samples

SEEDS = range(4)
every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def network(seed: int) -> tuple[nn.Sequential, Tensor]:
    return mlp(4, 5, 3, seed=seed), normal(6, 4, seed=seed)


def from_columns(J: Tensor, columns: list[Tensor]) -> Tensor:
    """``1/n sum_n sum_c (J_n^T s_c) (J_n^T s_c)^T``."""
    found = torch.stack([torch.einsum("nkp,nk->np", J, column) for column in columns])
    return torch.einsum("cnp,cnq->pq", found, found) / len(J)


@every_kind
@every_seed
def test_A1_columns_give_the_fisher_that_enumeration_of_targets_gives(kind, seed):
    net, x = network(seed)
    expected = oracle.fisher(net, x, kind)
    columns = list(LIKELIHOODS[kind].columns(oracle.output(net, x)))
    assert relative(from_columns(oracle.jacobian(net, x), columns), expected) < 1e-13


@every_kind
@every_seed
def test_A1_backward_passes_of_a_tap_give_the_fisher_that_enumeration_gives(kind, seed):
    net, x = network(seed)
    expected = oracle.fisher(net, x, kind)
    assert relative(fisher(samples(net, x, LIKELIHOODS[kind])), expected) < 1e-13


@every_seed
def test_A2_columns_are_a_root_of_diag_p_minus_p_p(seed):
    f = 3 * normal(7, 5, seed=seed)
    p = f.softmax(-1)
    S = torch.stack(list(Categorical().columns(f)), -1)
    R = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    assert relative(S @ S.mT, R) < 1e-14
    printed = torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
    assert relative(S, printed) < 1e-14


@pytest.mark.parametrize(("kind", "variance"), [("bernoulli", None), ("gaussian", 1.0)])
def test_A2_columns_of_independent_outputs_are_roots_of_their_variances(kind, variance):
    f = normal(7, 5)
    p = f.sigmoid()
    R = torch.diag_embed(torch.ones_like(f) if variance else p * (1 - p))
    S = torch.stack(list(LIKELIHOODS[kind].columns(f)), -1)
    assert relative(S @ S.mT, R) < 1e-14


@every_seed
def test_A3_jacobian_of_the_probabilities_with_diag_one_over_p_is_the_same_matrix(seed):
    net, x = network(seed)
    J = oracle.jacobian(nn.Sequential(*net, nn.Softmax(-1)), x)
    p = oracle.output(net, x).softmax(-1)
    expected = torch.einsum("nkp,nk,nkq->pq", J, 1 / p, J) / len(x)
    assert relative(fisher(samples(net, x, Categorical())), expected) < 1e-12


@every_kind
def test_A4_the_error_of_the_sampled_fisher_falls_as_one_over_the_root_of_the_draws(kind):
    net, x = mlp(3, 3), normal(4, 3)
    J, f = oracle.jacobian(net, x), oracle.output(net, x)
    expected = oracle.fisher(net, x, kind)
    repeats, generator = 48, torch.Generator().manual_seed(1)
    many = f.expand(repeats, *f.shape).reshape(-1, f.shape[-1])
    sizes = (8, 32, 128)
    errors = []
    for size in sizes:
        F = torch.zeros(repeats, *expected.shape, dtype=f.dtype)
        for column in LIKELIHOODS[kind].draws(many, generator, samples=size):
            v = torch.einsum("nkp,rnk->rnp", J, column.view(repeats, *f.shape))
            F += v.mT @ v / len(x)
        errors.append(float((F - expected).flatten(1).norm(dim=1).mean() / expected.norm()))
    steps = torch.tensor(errors).log().diff() / torch.tensor(sizes).log().diff()
    assert float(steps.mean()) == pytest.approx(-0.5, abs=0.12)


@every_kind
@every_seed
def test_A5_the_empirical_fisher_is_another_matrix(kind, seed):
    net, x = network(seed)
    y = oracle.targets(kind, oracle.output(net, x), seed)
    found = samples(net, x, None, lambda f: oracle.mean_nll(kind, f, y))
    for layer, expected in oracle.empirical_blocks(net, x, y, kind).items():
        assert relative(fisher({layer: found[layer]}), expected) < 1e-12
    assert relative(fisher(found), oracle.fisher(net, x, kind)) > 0.1


@every_kind
@every_seed
def test_A6_half_the_quadratic_form_of_the_fisher_is_the_KL_divergence(kind, seed):
    net, x = network(seed)
    F = fisher(samples(net, x, LIKELIHOODS[kind]))
    params = oracle.parameters(net)
    step = {name: 1e-4 * normal(*p.shape, seed=k) for k, (name, p) in enumerate(params.items())}
    d = torch.cat([M.flatten() for M in oracle.matrices(step).values()])
    f = oracle.output(net, x)
    moved = oracle.output(net, x, {name: p + step[name] for name, p in params.items()})
    ratio = float(d @ F @ d) / 2 / float(divergence(kind, f, moved))
    assert ratio == pytest.approx(1, abs=2e-3)


def divergence(kind: str, f: Tensor, other: Tensor) -> Tensor:
    """``KL(p(y|f) || p(y|other))``, mean over examples."""
    if kind == "gaussian":
        return (f - other).square().sum(-1).mean() / 2
    if kind == "bernoulli":
        f, other = (torch.stack([z, torch.zeros_like(z)], -1) for z in (f, other))
    p, q = f.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum() / len(f)


@every_kind
@every_seed
def test_A7_with_a_canonical_link_and_one_layer_the_fisher_is_the_hessian(kind, seed):
    net, x = mlp(4, 3, seed=seed), normal(6, 4, seed=seed)
    y = oracle.targets(kind, oracle.output(net, x), seed)

    def loss(vector: Tensor) -> Tensor:
        W = vector.view(3, 5)
        return oracle.mean_nll(kind, x @ W[:, :-1].mT + W[:, -1], y)

    W = torch.cat(list(oracle.matrices(oracle.parameters(net)).values())).flatten()
    assert relative(fisher(samples(net, x, LIKELIHOODS[kind])), hessian(loss)(W)) < 1e-12


def root_of_fisher(net: nn.Sequential, x: Tensor, kind: str) -> Tensor:
    """``U [P, n c]`` with ``U U^T = F``, through natgrad's columns."""
    J = oracle.jacobian(net, x)
    columns = torch.stack(list(LIKELIHOODS[kind].columns(oracle.output(net, x))))
    return torch.einsum("nkp,cnk->pcn", J, columns).flatten(1) / len(x) ** 0.5


@every_kind
@every_seed
def test_A8_the_regularised_step_is_the_minimiser_and_not_its_misprint(kind, seed):
    net, x = network(seed)
    U = root_of_fisher(net, x, kind)
    g, eps, lam = normal(len(U), seed=seed), 0.3, 0.7
    step = -linalg.woodbury_solve(U, eps / lam, g.unsqueeze(-1)).squeeze(-1) / lam

    def slope(d: Tensor) -> Tensor:
        return g + eps * d + lam * (U @ (U.mT @ d))

    assert float(slope(step).norm() / g.norm()) < 1e-12
    misprint = -linalg.woodbury_solve(U, eps, g.unsqueeze(-1)).squeeze(-1) / lam
    assert float(slope(misprint).norm() / g.norm()) > 0.1


@every_kind
@every_seed
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_A9_woodbury_solves_with_the_damped_fisher(kind, seed, damping):
    net, x = network(seed)
    F, U = oracle.fisher(net, x, kind), root_of_fisher(net, x, kind)
    v = normal(len(F), 2, seed=seed)
    expected = torch.linalg.solve(F + damping * torch.eye(len(F), dtype=F.dtype), v)
    assert relative(linalg.woodbury_solve(U, damping, v), expected) < 1e-11


@every_kind
@every_seed
def test_A10_the_squared_mean_gradient_is_the_fisher_over_n_with_the_models_own_targets(kind, seed):
    net, x = mlp(3, 2, seed=seed), normal(3, 3, seed=seed)
    J, f = oracle.jacobian(net, x), oracle.output(net, x)
    expected = oracle.fisher(net, x, kind)
    each = list(oracle.outcomes(kind, f))
    total = torch.zeros_like(expected)
    for choice in product(range(len(each)), repeat=len(x)):
        weight = torch.stack([each[c][0][n] for n, c in enumerate(choice)]).prod()
        y = torch.stack([each[c][1][n] for n, c in enumerate(choice)])
        mean = torch.einsum("nkp,nk->p", J, LIKELIHOODS[kind].score(f, y)) / len(x)
        total += weight * torch.outer(mean, mean)
    assert relative(len(x) * total, expected) < 1e-12
