"""Eigenvalue correction: when the scale is measured, what a new basis does to it, its state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad.blocks import EKFAC, KFAC, TEKFAC, EigenCorrected, EKFACRa, Exact, TEKFACRa
from natgrad.damping import Constant, Factored
from natgrad.linalg import Eigen
from natgrad.sample import OneHot, Sample
from tests import byhand
from tests.measured import basis, block, commit, damped_solve, refresh
from tests.networks import normal, relative

both = pytest.mark.parametrize("cls", [EKFAC, TEKFAC])


def sample(n: int = 6, t: int = 2, i: int = 4, o: int = 3, c: int = 2, seed: int = 0) -> Sample:
    return Sample(normal(n, t, i, seed=seed), normal(c, n, t, o, seed=seed + 1))


def observed(cls: type[EigenCorrected], **kwargs) -> EigenCorrected:
    made = cls((3, 4), damping=0.1, dtype=torch.float64, **kwargs)
    made.observe(sample())
    commit(made)
    return made


@both
def test_until_a_scale_is_measured_the_block_is_the_two_factor_block(cls):
    made = observed(cls)
    refresh(made)
    plain = block(cls.of, sample(), Constant(0.1))
    M = normal(3, 4)
    assert relative(made.dense(), plain.dense()) < 1e-12
    assert relative(made.solve(M), plain.solve(M)) < 1e-11
    made.rescale(sample())
    assert relative(made.dense(), plain.dense()) < 1e-12  # not committed yet
    commit(made)
    assert relative(made.dense(), plain.dense()) > 1e-3


@both
def test_before_the_first_basis_no_scale_is_measured(cls):
    made = observed(cls)
    made.rescale(sample())
    assert made.scale.pending is None
    assert not made.is_ready


@both
def test_products_trace_norm_and_eigenvalues_are_those_of_the_matrix(cls):
    made = block(cls, sample())
    F, M = made.dense(), normal(5, 3, 4)
    assert relative(made.product(M).flatten(-2), M.flatten(-2) @ F) < 1e-12
    assert relative(made.product(M[0]).flatten(), F @ M[0].flatten()) < 1e-12
    assert float(made.trace()) == pytest.approx(float(F.trace()), rel=1e-12)
    assert float(made.squared_norm()) == pytest.approx(float(F.square().sum()), rel=1e-12)
    assert relative(made.eigenvalues().sort().values, torch.linalg.eigvalsh(F)) < 1e-12


@both
def test_the_scale_is_averaged_on_its_own(cls):
    made = observed(cls, decay=0.75)
    refresh(made)
    Q = basis(made)
    expected, weight = torch.zeros(12, dtype=torch.float64), 0.0
    for seed in (1, 2, 3):
        made.rescale(sample(seed=seed))
        commit(made)
        found = sample(seed=seed)
        scale = (Q.mT @ byhand.exact(found.a, found.g) @ Q).diagonal()
        expected, weight = 0.75 * expected + scale, 0.75 * weight + 1
    assert relative(made.scales().flatten(), expected / weight) < 1e-12
    A, _ = byhand.kfac(sample().a, sample().g)
    assert cls is TEKFAC or relative(made.basis.A.mean(), A) < 1e-12


@both
def test_a_waiting_scale_is_carried_to_the_new_basis_as_well(cls):
    made = block(cls, sample())
    made.rescale(sample(seed=3))
    before, Q = made.scale.pending.flatten(), basis(made)
    made.observe(sample(seed=8))
    for name in ("A", "G"):
        getattr(made.basis, name).commit()
    if cls is TEKFAC:
        made.basis.delta.commit()
    refresh(made)
    new = basis(made)
    assert relative(new, Q) > 0.1
    waiting = Q @ torch.diag(before) @ Q.mT
    assert relative(made.scale.pending.flatten(), (new.mT @ waiting @ new).diagonal()) < 1e-12


@both
def test_the_same_basis_in_another_order_and_sign_changes_nothing(cls):
    made = block(cls, sample())
    before, M = made.dense(), normal(3, 4)
    solved = made.solve(M)
    A, G = made.basis.eigen()
    made.load({"A": Eigen(A.values.flip(0), -A.vectors.flip(1)), "G": Eigen(G.values, -G.vectors)})
    assert relative(made.dense(), before) < 1e-12
    assert relative(made.solve(M), solved) < 1e-12


@both
def test_a_partial_refresh_keeps_the_other_basis(cls):
    made = block(cls, sample())
    trace, (_, G) = float(made.trace()), made.basis.eigen()
    kept = G.vectors.clone()
    made.load({"A": Eigen(normal(4).abs(), torch.linalg.qr(normal(4, 4)).Q)})
    assert torch.equal(made.basis.eigen()[1].vectors, kept)
    assert float(made.trace()) == pytest.approx(trace, rel=1e-13)


@both
def test_damping_is_added_to_the_scale_and_may_change_between_steps(cls):
    damping = Constant(0.1)
    made = block(cls, sample(), damping)
    damping.value = 0.7
    M = normal(3, 4)
    assert relative(made.solve(M), damped_solve(made.dense(), M, 0.7)) < 1e-11


@both
def test_undamped_the_solution_is_the_pseudo_inverses(cls):
    made = block(cls, sample(n=2, t=1, c=1), Constant(0.0))
    M = normal(3, 4)
    expected = torch.linalg.pinv(made.dense(), hermitian=True, rtol=1e-12) @ M.flatten()
    assert relative(made.solve(M).flatten(), expected) < 1e-10


@both
def test_factored_damping_is_refused(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__} adds its damping to eigenvalues"):
        cls((3, 4), damping=Factored(0.1))


@both
def test_state_holds_all_that_solving_and_the_next_refresh_need(cls):
    made = block(cls, sample())
    other = cls((3, 4), damping=0.1, decay=1.0, dtype=torch.float64)
    made.rescale(sample(seed=3))
    assert not other.is_ready
    other.load_state_dict(made.state_dict())
    for each in (made, other):
        each.observe(sample(seed=8))
        commit(each)
        refresh(each)
    assert torch.equal(other.solve(normal(3, 4)), made.solve(normal(3, 4)))
    assert torch.equal(other.dense(), made.dense())


@both
def test_groups_are_blocks_of_their_own(cls):
    each = [sample(seed=0), sample(seed=5)]
    together = Sample(torch.stack([s.a for s in each]), torch.stack([s.g for s in each]))
    made = cls((3, 4), groups=(2,), damping=0.1, dtype=torch.float64)
    for observe in (made.observe, made.rescale):
        observe(together)
        commit(made)
        if not made.is_ready:
            refresh(made)
    alone = [block(cls, s) for s in each]
    M = normal(2, 3, 4)
    assert relative(made.dense(), torch.stack([one.dense() for one in alone])) < 1e-12
    solved = torch.stack([one.solve(m) for one, m in zip(alone, M, strict=True)])
    assert relative(made.solve(M), solved) < 1e-11
    assert float(made.trace()) == pytest.approx(sum(float(one.trace()) for one in alone))


@both
def test_unit_vectors_need_no_input_basis(cls):
    indices = torch.randint(-1, 5, (6, 2), generator=torch.Generator().manual_seed(0))
    rows, g = OneHot(indices, 5), normal(2, 6, 2, 3)
    made = cls((3, 5), diagonal_input=True, damping=0.1, dtype=torch.float64)
    for observe in (made.observe, made.rescale):
        observe(Sample(rows, g))
        commit(made)
        if not made.is_ready:
            refresh(made)
    expected = block(cls, Sample(rows.dense(g.dtype), g))
    M = normal(3, 5)
    assert relative(made.dense(), expected.dense()) < 1e-9
    assert relative(made.solve(M), expected.solve(M)) < 1e-9
    assert made.basis.eigen()[0].vectors is None


class Corrected(EigenCorrected):
    """The correction of a block of one's own, here of K-FAC with its factors squared."""

    class Squared(KFAC):
        def matrices(self) -> tuple[Tensor, Tensor]:
            A, G = super().matrices()
            return A @ A, G @ G

    of = Squared


def test_the_correction_of_any_two_factor_block_costs_one_line():
    F = block(Exact, sample()).dense()
    made = block(Corrected, sample())
    Q = basis(made)
    assert relative(made.dense(), Q @ torch.diag((Q.mT @ F @ Q).diagonal()) @ Q.mT) < 1e-12
    assert relative(made.dense(), block(EKFAC, sample()).dense()) < 1e-9


@pytest.mark.parametrize("cls", [EKFACRa, TEKFACRa])
def test_ra_squares_the_gradient_of_the_batch_mean(cls):
    made = observed(cls)
    refresh(made)
    batches = sample(seed=5), sample(n=4, seed=9)
    for each in batches:
        made.rescale(each)
    commit(made)
    A, G = made.basis.eigen()
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for each in batches:
        for g in each.g:
            mean = torch.einsum("nto,nti->oi", g, each.a) / each.examples
            expected += (G.vectors.mT @ mean @ A.vectors).square() * each.examples / 10
    assert relative(made.scales(), expected) < 1e-12


def test_with_sampled_targets_ra_is_smaller_by_the_batch_size():
    torch.manual_seed(0)
    n, draws = 8, 20_000
    a, scores = normal(n, 1, 4), normal(n, 1, 3, seed=2)
    made = EKFACRa((3, 4), damping=0.1, dtype=torch.float64)
    signs = torch.randint(2, (draws, n, 1, 1), dtype=torch.float64) * 2 - 1  # E[score] = 0
    drawn = Sample(a, signs * scores / draws**0.5)
    made.observe(drawn)
    commit(made)
    refresh(made)
    made.rescale(drawn)
    commit(made)
    intra = drawn.rotated(*(e.vectors for e in made.basis.eigen())).squared_gradients() / n
    assert relative(made.scales() * n, intra) < 0.05
    assert relative(made.scales(), intra) > 0.5
