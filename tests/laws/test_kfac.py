"""B1 to B13: where K-FAC is exact, where it is not, and how it is damped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.damping import Constant, Factored
from natgrad.damping.fixed import factored_ridges
from natgrad.sample import Sample
from tests import oracle
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS, columns, decomposed, kfac, samples

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", range(4))


def errors(net: nn.Module, x: Tensor, kind: str, shared: str = "expand") -> dict[str, float]:
    """Relative error of each layer's K-FAC block against the exact Fisher block."""
    found = samples(net, x, LIKELIHOODS[kind])
    exact = oracle.blocks(net, x, kind)
    assert found.keys() == exact.keys()
    return {
        layer: relative(kfac(found[layer], shared=shared).dense(), exact[layer]) for layer in exact
    }


@every_kind
@every_seed
def test_B1_a_single_example_is_exact_in_every_layer(kind, seed):
    found = errors(mlp(4, 5, 4, 3, seed=seed), normal(1, 4, seed=seed), kind)
    assert max(found.values()) < 1e-12


@every_seed
@pytest.mark.parametrize("bias", [True, False])
def test_B2_a_deep_linear_network_with_squared_error_is_exact(seed, bias):
    net = mlp(4, 5, 6, 3, seed=seed, activation=None, bias=bias)
    assert max(errors(net, normal(7, 4, seed=seed), "gaussian").values()) < 1e-12


@every_seed
def test_B2_the_empirical_fisher_of_a_deep_linear_network_is_not_a_kronecker_product(seed):
    net, x = mlp(4, 5, 3, seed=seed, activation=None), normal(7, 4, seed=seed)
    y = normal(7, 3, seed=seed + 10)
    found = samples(net, x, None, lambda f: oracle.mean_nll("gaussian", f, y))
    for layer, exact in oracle.empirical_blocks(net, x, y, "gaussian").items():
        assert relative(kfac(found[layer]).dense(), exact) > 0.1


@every_seed
def test_B3_the_last_layer_with_squared_error_is_exact(seed):
    found = errors(mlp(4, 5, 4, 3, seed=seed), normal(7, 4, seed=seed), "gaussian")
    assert found.pop("4") < 1e-12
    assert min(found.values()) > 0.01


@every_kind
@every_seed
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 3)])
def test_B4_the_pairs_of_a_sample_reproduce_the_exact_block(kind, seed, shape):
    net, x = mlp(3, 4, 2, seed=seed), normal(*shape, seed=seed)
    found = samples(net, x, LIKELIHOODS[kind])
    for layer, exact in oracle.blocks(net, x, kind).items():
        J = columns(found[layer])
        assert relative(J.mT @ J / len(x), exact) < 1e-12


@every_seed
def test_B5_a_tanh_network_with_cross_entropy_is_only_approximated(seed):
    found = errors(mlp(4, 6, 5, 3, seed=seed), normal(12, 4, seed=seed), "categorical")
    assert min(found.values()) > 1e-3
    assert max(found.values()) > 0.05


@every_seed
def test_B6_independent_inputs_and_gradients_are_exact(seed):
    a, g = normal(6, 4, seed=seed), normal(5, 3, seed=seed + 10)
    grid = Sample(a.repeat_interleave(5, 0).unsqueeze(1), g.repeat(6, 1)[None, :, None])
    J = columns(grid)
    assert relative(kfac(grid).dense(), J.mT @ J / grid.examples) < 1e-12


def real_block(seed: int, layer: str = "0", **kwargs):
    net, x = mlp(4, 5, 6, seed=seed), normal(30, 4, seed=seed)
    return kfac(samples(net, x, LIKELIHOODS["bernoulli"])[layer], **kwargs)


@every_seed
@pytest.mark.parametrize("damping", [0.0, Factored(0.0), Constant(0.0)])
def test_B7_undamped_the_block_solves_with_its_own_dense_matrix(seed, damping):
    block = decomposed(real_block(seed, damping=damping))
    M = normal(*block.shape, seed=seed)
    expected = torch.linalg.solve(block.dense(), M.flatten())
    tolerance = max(1e-11, 50 * 2.2e-16 * float(torch.linalg.cond(block.dense())))
    assert relative(block.solve(M).flatten(), expected) < tolerance


@every_seed
@pytest.mark.parametrize("layer", ["0", "2"])
def test_B8_factored_damping_is_damping_plus_cross_terms(seed, layer):
    damping = 0.1
    block = decomposed(real_block(seed, layer, damping=damping))
    A, G = block.A.mean(), block.G.mean()
    (o, i), root = block.shape, damping**0.5
    pi = float(((A.trace() / i) / (G.trace() / o)).sqrt())
    eye_A, eye_G = torch.eye(i, dtype=A.dtype), torch.eye(o, dtype=A.dtype)
    cross = root / pi * linalg.kron(eye_G, A) + pi * root * linalg.kron(G, eye_A)
    damped = linalg.kron(G, A) + damping * torch.eye(o * i, dtype=A.dtype) + cross
    ridge_A, ridge_G = Factored(damping).ridges(A.trace(), G.trace(), i, o)
    factored = linalg.kron(linalg.add_ridge(G, ridge_G), linalg.add_ridge(A, ridge_A))
    assert relative(factored, damped) < 1e-13
    M = normal(o, i, seed=seed)
    expected = torch.linalg.solve(damped, M.flatten())
    assert relative(block.solve(M).flatten(), expected) < 1e-11


@every_seed
def test_B9_pi_minimises_the_trace_norm_of_the_cross_terms(seed):
    block = real_block(seed)
    A, G, damping = block.A.mean(), block.G.mean(), 0.1
    eye_A, eye_G = (torch.eye(len(M), dtype=M.dtype) for M in (A, G))

    def trace_norm(ridge_A: Tensor, ridge_G: Tensor) -> float:
        cross = ridge_G * linalg.kron(eye_G, A) + ridge_A * linalg.kron(G, eye_A)
        return float(torch.linalg.matrix_norm(cross, "nuc"))

    means = linalg.mean_diagonal(A), linalg.mean_diagonal(G)
    ridge_A, ridge_G = factored_ridges(*means, damping)
    assert float(ridge_A * ridge_G) == pytest.approx(damping, rel=1e-13)
    least = trace_norm(ridge_A, ridge_G)
    assert all(trace_norm(ridge_A * s, ridge_G / s) > least for s in (0.25, 0.8, 0.98, 1.02, 1.3))


@every_seed
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_B10_damped_eigenvalues_solve_with_the_damped_matrix_exactly(seed, damping):
    block = decomposed(real_block(seed, damping=Constant(damping)))
    M = normal(*block.shape, seed=seed)
    F = block.dense()
    expected = torch.linalg.solve(F + damping * torch.eye(len(F), dtype=F.dtype), M.flatten())
    assert relative(block.solve(M).flatten(), expected) < 1e-11


@every_kind
@every_seed
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_B11_paired_rows_of_the_users_loss_add_up_to_the_weights_gradient(kind, seed, reduction):
    net, x = mlp(4, 5, 3, seed=seed), normal(6, 4, seed=seed)
    y = oracle.targets(kind, oracle.output(net, x), seed)
    size = 1 if reduction == "mean" else len(x)

    def loss(f: Tensor) -> Tensor:
        return oracle.mean_nll(kind, f, y) * size

    for name, sample in samples(net, x, None, loss, reduction=reduction).items():
        layer = net.get_submodule(name)
        M = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        total = columns(sample).mean(0).view_as(M) * size
        assert relative(total, M) < 1e-12
        each = oracle.example_gradients(net, x, y, kind)[name]
        assert relative(columns(sample).view_as(each), each) < 1e-12


def tokens(pooled: bool, seed: int) -> tuple[nn.Sequential, Tensor]:
    net = mlp(3, 4, 2, seed=seed, activation=None)
    return (nn.Sequential(*net, SumPool()) if pooled else net), normal(5, 3, 3, seed=seed)


@every_seed
def test_B12_reduce_is_exact_for_a_linear_network_with_sum_pooled_outputs(seed):
    assert max(errors(*tokens(True, seed), "gaussian", "reduce").values()) < 1e-12


@every_seed
def test_B13_expand_is_exact_for_a_linear_network_with_one_loss_per_position(seed):
    assert max(errors(*tokens(False, seed), "gaussian", "expand").values()) < 1e-12


@every_seed
def test_B12_expand_before_a_pooling_is_not_exact(seed):
    assert min(errors(*tokens(True, seed), "gaussian", "expand").values()) > 0.1


@every_seed
def test_B13_reduce_without_a_pooling_is_not_exact(seed):
    assert min(errors(*tokens(False, seed), "gaussian", "reduce").values()) > 0.1
