"""C1 to C12 and C18 to C20: what the eigenvalue correction and TKFAC keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, Diagonal, Exact
from natgrad.linalg import Eigen
from natgrad.sample import Sample
from tests import oracle
from tests.measured import CORRECTED, basis, block, commit, layers, partial_traces, refresh
from tests.networks import mlp, normal, relative
from tests.tapped import LIKELIHOODS, samples

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", range(4))
vectors_and_positions = pytest.mark.parametrize(
    "shape", [(9, 3), (6, 2, 3)], ids=["rows", "shared"]
)
with_and_without_correction = pytest.mark.parametrize(("plain", "corrected"), CORRECTED)
every_corrected = pytest.mark.parametrize("corrected", [EKFAC, TEKFAC])


def squared(M: Tensor) -> float:
    return float(M.square().sum())


@every_kind
@every_seed
@vectors_and_positions
@every_corrected
def test_C1_the_scale_is_the_diagonal_of_the_exact_block_in_the_eigenbasis(
    kind, seed, shape, corrected
):
    for sample, F in layers(kind, seed, shape):
        made = block(corrected, sample)
        Q = basis(made)
        assert relative(made.scales().flatten(), (Q.mT @ F @ Q).diagonal()) < 1e-12


@every_kind
@every_seed
@every_corrected
def test_C1_with_one_position_the_scale_is_the_mean_of_products_of_squares(kind, seed, corrected):
    for sample, _ in layers(kind, seed):
        made = block(corrected, sample)
        A, G = made.basis.eigen()
        a2, g2 = (sample.a[:, 0] @ A.vectors).square(), (sample.g[:, :, 0] @ G.vectors).square()
        expected = torch.einsum("cno,ni->oi", g2, a2) / sample.examples
        assert relative(made.scales(), expected) < 1e-12


@every_kind
@every_seed
@vectors_and_positions
@pytest.mark.parametrize("keeps", [EKFAC, TEKFAC, Diagonal, Exact])
def test_C2_and_C12_the_trace_of_the_exact_block_is_kept(kind, seed, shape, keeps):
    for sample, F in layers(kind, seed, shape):
        made = block(keeps, sample)
        assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-13)
        assert float(made.eigenvalues().min()) >= 0


@every_kind
@every_seed
@vectors_and_positions
@with_and_without_correction
def test_C3_C4_C10_and_C11_the_correction_removes_exactly_the_misfit_of_the_eigenvalues(
    kind, seed, shape, plain, corrected
):
    for sample, F in layers(kind, seed, shape):
        before, after = block(plain, sample), block(corrected, sample)
        A, G = after.basis.eigen()
        misfit = squared(torch.outer(G.values, A.values) - after.scales())
        error, kept = squared(F - before.dense()), squared(F - after.dense())
        assert error == pytest.approx(kept + misfit, rel=1e-12, abs=1e-13 * squared(F))
        assert kept <= error + 1e-13 * squared(F)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
@with_and_without_correction
def test_C10_theorem_3_1_holds_on_random_networks(seed, activation, plain, corrected):
    widths = [
        int(k) for k in torch.randint(2, 6, (4,), generator=torch.Generator().manual_seed(seed))
    ]
    net, x = mlp(*widths, seed=seed, activation=activation), normal(7, widths[0], seed=seed)
    for layer, F in oracle.blocks(net, x, "categorical").items():
        sample = samples(net, x, LIKELIHOODS["categorical"])[layer]
        before, after = block(plain, sample).dense(), block(corrected, sample).dense()
        assert squared(F - after) <= squared(F - before) + 1e-13 * squared(F)


@every_seed
@vectors_and_positions
@every_corrected
def test_C5_in_any_orthogonal_basis_any_other_diagonal_is_further_by_its_distance(
    seed, shape, corrected
):
    for sample, F in layers("bernoulli", seed, shape):
        made = block(corrected, sample)
        o, i = made.shape
        Q_A, Q_G = (torch.linalg.qr(normal(d, d, seed=seed)).Q for d in (i, o))
        made = corrected((o, i), damping=0.1, dtype=torch.float64)
        made.load({"A": Eigen(normal(i).abs(), Q_A), "G": Eigen(normal(o).abs(), Q_G)})
        made.rescale(sample)
        commit(made)
        Q, D = linalg.kron(Q_G, Q_A), normal(o * i, seed=seed)
        other = squared(F - Q @ torch.diag(D) @ Q.mT)
        best = squared(F - made.dense())
        assert other == pytest.approx(best + squared(D - made.scales().flatten()), rel=1e-12)


@every_kind
@every_seed
def test_C6_and_C7_tkfac_reproduces_the_trace_and_both_partial_traces(kind, seed):
    for sample, F in layers(kind, seed):
        made = block(TKFAC, sample)
        P, S = partial_traces(F, *made.shape)
        found = partial_traces(made.dense(), *made.shape)
        assert relative(found[0], P) < 1e-12
        assert relative(found[1], S) < 1e-12
        delta = float(made.delta.mean())
        for trace in (F.trace(), made.trace(), made.A.mean().trace(), made.G.mean().trace()):
            assert float(trace) == pytest.approx(delta, rel=1e-13)


def test_C7_tekfac_reproduces_both_partial_traces_too_and_other_approximations_do_not():
    [(sample, F), *_] = layers("categorical", 0)
    P, S = partial_traces(F, *block(KFAC, sample).shape)
    for other, reproduces in ((TEKFAC, True), (KFAC, False), (EKFAC, False), (Diagonal, False)):
        made = block(other, sample)
        found = partial_traces(made.dense(), *made.shape)
        assert (max(relative(found[0], P), relative(found[1], S)) < 1e-12) is reproduces


@every_seed
def test_C8_kfac_does_not_keep_the_trace(seed):
    [(sample, F), *_] = layers("categorical", seed)
    assert abs(float(block(KFAC, sample).trace() / F.trace()) - 1) > 1e-3


@every_seed
@pytest.mark.parametrize(("trace_A", "trace_G"), [(1.0, 1.0), (0.3, 7.0), (5.0, 0.01)])
def test_C9_any_normalisation_of_the_factors_gives_the_same_matrix(seed, trace_A, trace_G):
    for sample, _ in layers("categorical", seed):
        a, g = sample.a[:, 0], sample.g[:, :, 0]
        each = torch.einsum("cno,ni->cn", g.square(), a.square())
        both = each.sum() / len(a)
        Phi = trace_A * torch.einsum("cno,ni,nj->ij", g.square(), a, a) / len(a) / both
        Psi = trace_G * torch.einsum("ni,cno,cnp->op", a.square(), g, g) / len(a) / both
        delta = both / (trace_A * trace_G)
        assert relative(block(TKFAC, sample).dense(), delta * linalg.kron(Psi, Phi)) < 1e-13


@every_seed
@vectors_and_positions
@every_corrected
def test_C18_a_new_basis_takes_the_diagonal_of_the_old_matrix_in_it(seed, shape, corrected):
    old, new = (layers("categorical", k, shape)[0][0] for k in (seed, seed + 10))
    made = block(corrected, old, decay=0.5)
    before, Q = made.dense(), basis(made)
    made.observe(new)
    commit(made)
    refresh(made)
    assert relative(basis(made), Q) > 0.1
    Q = basis(made)
    expected = Q @ torch.diag((Q.mT @ before @ Q).diagonal()) @ Q.mT
    assert relative(made.dense(), expected) < 1e-12
    assert float(made.trace()) == pytest.approx(float(before.trace()), rel=1e-13)


@every_seed
def test_C19_and_C20_numerators_are_averaged_and_not_normalised_factors(seed):
    steps = [layers(kind, seed)[0][0] for kind in oracle.KINDS]
    steps = [Sample(s.a, (k + 1) * s.g) for k, s in enumerate(steps)]
    made = block(TKFAC, steps, decay=0.75)
    delta = float(made.delta.mean())
    for trace in (made.A.mean().trace(), made.G.mean().trace(), made.trace()):
        assert float(trace) == pytest.approx(delta, rel=1e-13)
    each = [block(TKFAC, s) for s in steps]
    weights = 0.75 ** torch.arange(len(steps) - 1, -1, -1, dtype=torch.float64)
    Phi = sum(w * b.A.mean() / b.delta.mean() for w, b in zip(weights, each, strict=True))
    Phi = Phi / weights.sum()
    assert float(Phi.trace()) == pytest.approx(1, rel=1e-13)
    assert relative(made.A.mean() / delta, Phi) > 1e-3


@every_kind
@every_seed
@vectors_and_positions
def test_tekfac_with_the_factors_of_kfac_is_ekfac(kind, seed, shape):
    for sample, _ in layers(kind, seed, shape):
        ekfac = block(EKFAC, sample)
        tekfac = TEKFAC(ekfac.shape, damping=0.1, dtype=torch.float64)
        A, G = ekfac.basis.eigen()
        tekfac.load({"A": A, "G": G})
        tekfac.rescale(sample)
        commit(tekfac)
        M = normal(*ekfac.shape, seed=seed)
        assert torch.equal(tekfac.dense(), ekfac.dense())
        assert torch.equal(tekfac.solve(M), ekfac.solve(M))
        assert torch.equal(tekfac.product(M), ekfac.product(M))


def test_tekfac_with_its_own_factors_is_not_ekfac():
    [(sample, _), *_] = layers("categorical", 0)
    assert relative(block(TEKFAC, sample).dense(), block(EKFAC, sample).dense()) > 1e-3
