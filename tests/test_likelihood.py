"""Output distributions: scores, draws and columns agree with the density they are of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from natgrad import Bernoulli, Categorical, Gaussian, Likelihood
from tests import oracle
from tests.networks import normal, relative
from tests.tapped import LIKELIHOODS

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
SHAPES = [(5, 3), (4, 2, 3)]


def R_of(columns, n: int) -> Tensor:
    """``sum_c s_c s_c^T`` of each example, ``[n, entries, entries]``."""
    S = torch.stack([column.reshape(n, -1) for column in columns], -1)
    return S @ S.mT


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_is_the_derivative_of_the_nll_which_is_the_oracles(kind, shape):
    f = normal(*shape).requires_grad_()
    y = oracle.targets(kind, f.detach())
    likelihood = LIKELIHOODS[kind]
    losses = likelihood.nll(f, y)
    expected = torch.stack([oracle.nll(kind, a, b) for a, b in zip(f, y, strict=True)])
    assert torch.allclose(losses, expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), f)
    assert relative(likelihood.score(f, y), gradient) < 1e-12
    assert relative(Likelihood.score(likelihood, f, y), gradient) < 1e-12
    assert not likelihood.score(f, y).requires_grad


@every_kind
@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 2)])
def test_columns_sum_to_the_expected_squares_of_the_score(kind, shape):
    f = normal(*shape)
    R = torch.zeros(shape[0], f[0].numel(), f[0].numel(), dtype=f.dtype)
    for weight, y in oracle.outcomes(kind, f):
        s = LIKELIHOODS[kind].score(f, y).flatten(1)
        R += weight[:, None, None] * s.unsqueeze(-1) * s.unsqueeze(-2)
    assert relative(R_of(LIKELIHOODS[kind].columns(f), len(f)), R) < 1e-13


@every_kind
def test_draws_follow_the_density_and_the_given_generator(kind):
    f = normal(1, 3).expand(20000, 3)
    likelihood = LIKELIHOODS[kind]
    before = torch.get_rng_state()
    one, two = (likelihood.sample(f, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    p = f[0].softmax(-1) if kind == "categorical" else f[0].sigmoid()
    if kind == "categorical":
        assert torch.allclose(F.one_hot(one, 3).double().mean(0), p, atol=0.02)
    elif kind == "bernoulli":
        assert torch.allclose(one.mean(0), p, atol=0.02)
        assert set(one.unique().tolist()) == {0.0, 1.0}
    else:
        assert torch.allclose(one.mean(0), f[0], atol=0.03)
        assert torch.allclose(torch.cov(one.mT), torch.eye(3, dtype=f.dtype), atol=0.04)


@every_kind
def test_draws_are_scores_scaled_by_the_root_of_their_number(kind):
    f, likelihood = normal(5, 3), LIKELIHOODS[kind]
    found = list(likelihood.draws(f, torch.Generator().manual_seed(2), samples=4))
    generator = torch.Generator().manual_seed(2)
    expected = [likelihood.score(f, likelihood.sample(f, generator)) / 2 for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("class_dim", [-1, 1])
def test_classes_may_stand_in_any_dimension(class_dim):
    f, y = normal(4, 2, 3), torch.randint(3, (4, 2))
    moved = f.movedim(-1, class_dim)
    last, other = Categorical(), Categorical(class_dim=class_dim)
    assert torch.allclose(other.nll(moved, y), last.nll(f, y))
    assert torch.allclose(other.score(moved, y).movedim(class_dim, -1), last.score(f, y))
    pairs = zip(other.columns(moved), last.columns(f), strict=True)
    assert all(torch.allclose(a.movedim(class_dim, -1), b) for a, b in pairs)
    g = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(other.sample(moved, g[0]), last.sample(f, g[1]))


def test_positions_are_averaged_over_all_that_count_in_the_batch():
    f, y = normal(4, 3, 5), torch.randint(5, (4, 3))
    y[0, 0] = y[1] = -100
    losses = Categorical().nll(f, y)
    expected = F.cross_entropy(f.flatten(0, 1), y.flatten())
    assert float(losses.mean()) == pytest.approx(float(expected))
    counted = y != -100
    summed = R_of(Categorical(positions="sum").columns(f, counted), 4)
    assert relative(R_of(Categorical().columns(f, counted), 4), summed * 4 / 8) < 1e-13


def test_ignored_positions_have_no_score_and_no_column():
    f, y = normal(4, 3, 5), torch.randint(5, (4, 3))
    y[0, 0] = y[1] = 7
    likelihood = Categorical(ignore_index=7)
    for g in (likelihood.score(f, y), *likelihood.columns(f, y != 7)):
        assert not g[y == 7].any()
    drawn = likelihood.draws(f, torch.Generator(), counted=y != 7)
    assert torch.equal(next(drawn).abs().sum(-1) > 0, y != 7)


def test_what_counts_is_told_from_the_users_gradient():
    f = normal(4, 3, 5).requires_grad_()
    y = torch.randint(5, (4, 3))
    y[0, 0] = y[1] = -100
    F.cross_entropy(f.flatten(0, 1), y.flatten()).backward()
    assert torch.equal(Categorical().counted(f, f.grad), y != -100)
    assert Bernoulli().counted(f, f.grad) is None
    assert Gaussian().counted(f, f.grad) is None


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_and_columns_have_the_dtype_of_the_output(kind, dtype):
    f = normal(5, 3).to(dtype)
    likelihood = LIKELIHOODS[kind]
    scores = [likelihood.score(f, likelihood.sample(f)), *likelihood.columns(f)]
    assert {s.dtype for s in scores} == {dtype}


@every_kind
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_extreme_logits_give_finite_scores(kind, size):
    f = torch.tensor([[size, -size, 0.0], [-size, size, size]])
    likelihood = LIKELIHOODS[kind]
    y = likelihood.sample(f, torch.Generator().manual_seed(0))
    for s in (likelihood.score(f, y), *likelihood.columns(f)):
        assert bool(torch.isfinite(s).all())


class Laplace(Likelihood):
    """A likelihood of one's own: only nll and sample."""

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        return (f - targets).abs().sum(-1)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(f.shape, generator=generator, dtype=f.dtype) - 0.5
        return f - u.sign() * (1 - 2 * u.abs()).log()


def test_a_likelihood_of_ones_own_needs_only_a_density_and_draws():
    f = normal(5, 3)
    (score,) = Laplace().draws(f, torch.Generator().manual_seed(0))
    assert set(score.unique().tolist()) == {-1.0, 1.0}
    with pytest.raises(NotImplementedError, match="Laplace defines no columns"):
        list(Laplace().columns(f))


def test_bad_settings_and_outputs_are_refused():
    with pytest.raises(ValueError, match='positions must be "mean" or "sum", got \'max\''):
        Categorical(positions="max")
    with pytest.raises(ValueError, match=r"needs logits \[n, ..., classes\], got shape \(3,\)"):
        list(Categorical().columns(normal(3)))


def test_likelihoods_print_how_to_make_them():
    assert repr(Categorical(1, positions="sum")) == (
        "Categorical(class_dim=1, ignore_index=-100, positions='sum')"
    )
    assert [repr(Bernoulli()), repr(Gaussian())] == ["Bernoulli()", "Gaussian()"]


def test_a_certain_and_right_prediction_counts_though_it_receives_no_gradient():
    f = torch.tensor([[200.0, 0.0], [0.3, 0.1], [0.2, 0.4]], requires_grad=True)
    y = torch.tensor([0, 1, -100])
    torch.nn.functional.cross_entropy(f, y).backward()
    assert Categorical().counted(f, f.grad).tolist() == [True, True, False]
