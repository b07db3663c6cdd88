"""F1 to F11: iterations for square roots, where they converge, and the forms that do not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from natgrad import linalg, roots
from natgrad.roots import Roots, denman_beavers, eigh_roots, newton_schulz
from tests.networks import normal, relative
from tests.spectra import with_condition, with_eigenvalues

every_seed = pytest.mark.parametrize("seed", range(4))
conditions = pytest.mark.parametrize("condition", [1e1, 1e2, 1e4])


def tolerance(condition: float, base: float = 1e-11) -> float:
    return max(base, 50 * 2.2e-16 * condition)


def excess(found: Roots) -> Tensor:
    """``R = I - Z Y``."""
    eye = torch.eye(found.root.shape[-1], dtype=found.root.dtype)
    return eye - found.inverse_root @ found.root


def whitened(Z: Tensor, A: Tensor) -> float:
    """``|Z A Z - I|_F / sqrt(d)``."""
    d = len(A)
    distance = Z.double() @ A.double() @ Z.double() - torch.eye(d, dtype=torch.float64)
    return float(distance.norm()) / math.sqrt(d)


def iternorm(A: Tensor, steps: int) -> Tensor:
    """Huang et al. 2019: ``P <- (3 P - P^3 A / tr A) / 2``, then ``P / sqrt(tr A)``."""
    trace = A.trace()
    P = torch.eye(len(A), dtype=A.dtype)
    for _ in range(steps):
        P = (3 * P - P @ P @ P @ (A / trace)) / 2
    return P / trace.sqrt()


@every_seed
@conditions
def test_F1_newton_schulz_gives_both_roots(seed, condition):
    A, Y, Z = with_condition(12, condition, seed)
    found = newton_schulz(50 * A)
    assert relative(found.root, Y * math.sqrt(50)) < tolerance(condition)
    assert relative(found.inverse_root, Z / math.sqrt(50)) < tolerance(condition)


@every_seed
@conditions
def test_F2_dividing_by_the_trace_gives_the_same(seed, condition):
    A = 50 * with_condition(12, condition, seed)[0]
    by_norm, by_trace = newton_schulz(A), newton_schulz(A, normalise="trace")
    assert relative(by_trace.root, by_norm.root) < tolerance(condition)
    assert relative(by_trace.inverse_root, by_norm.inverse_root) < tolerance(condition)
    early = [newton_schulz(A, iterations=2, normalise=by) for by in ("trace", "frobenius")]
    assert relative(early[0].root, early[1].root) > 1e-3


@every_seed
@pytest.mark.parametrize("normalise", ["frobenius", "trace"])
def test_F3_the_residual_follows_its_recursion(seed, normalise):
    A = with_condition(10, 100.0, seed)[0]
    c = A.norm() if normalise == "frobenius" else A.trace()
    R = torch.eye(10, dtype=A.dtype) - A / c
    for k in range(1, 9):
        R = (3 * R @ R + R @ R @ R) / 4
        found = newton_schulz(A, iterations=k, normalise=normalise)
        assert float((excess(found) - R).norm()) < 1e-12
        assert float(found.residual) == pytest.approx(float(R.norm()), abs=1e-12)


@every_seed
def test_F4_the_residual_is_at_least_squared(seed):
    A = with_condition(10, 100.0, seed)[0]
    norms = [
        float(torch.linalg.matrix_norm(excess(newton_schulz(A, iterations=k)), 2))
        for k in range(1, 14)
    ]
    assert all(after <= before**2 + 1e-14 for before, after in pairwise(norms))
    assert norms[-1] < 1e-13


@every_seed
def test_F5_as_printed_it_diverges_where_an_eigenvalue_is_large(seed):
    A, _, Z = with_eigenvalues(torch.linspace(0.5, 50, 10, dtype=torch.float64), seed)
    printed = newton_schulz(A, iterations=20, normalise=None)
    assert math.isinf(float(printed.residual))
    assert not bool(printed.inverse_root.isfinite().all())
    assert float(newton_schulz(A, normalise=None).residual) >= 1
    assert relative(newton_schulz(A, iterations=20).inverse_root, Z) < 1e-11


@every_seed
def test_F5_as_printed_it_converges_below_three(seed):
    A, Y, Z = with_eigenvalues(torch.linspace(0.1, 2.9, 10, dtype=torch.float64), seed)
    found = newton_schulz(A, iterations=20, normalise=None)
    assert relative(found.root, Y) < 1e-12
    assert relative(found.inverse_root, Z) < 1e-12


@pytest.mark.parametrize(("x", "sign"), [(0.5, 1), (2.9, 1), (3.1, -1), (4.9, 1), (5.1, None)])
def test_F6_the_basin_of_the_printed_form(x, sign):
    A = torch.tensor([[x]], dtype=torch.float64)
    found = newton_schulz(A, iterations=60, normalise=None)
    if sign is None:
        assert math.isinf(float(found.residual))
    else:
        assert float(found.root) == pytest.approx(sign * math.sqrt(x), rel=1e-12)
        assert float(found.residual) < 1e-12  # which does not see the sign
    assert float(newton_schulz(A).root) == pytest.approx(math.sqrt(x), rel=1e-14)


@every_seed
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_F7_iterations_are_those_of_the_eigenvalues(seed, condition):
    A = with_condition(12, condition, seed)[0]
    l = condition ** -torch.linspace(0, 1, 12, dtype=torch.float64)
    x, k = l / l.norm(), 0
    while float((1 - x).norm()) > 1e-6:
        x, k = x * (3 - x) ** 2 / 4, k + 1
    found = newton_schulz(A, tolerance=1e-6)
    assert int(found.iterations) == k
    predicted = math.log(float(l.norm() / l.min())) / math.log(9 / 4) + 4
    assert abs(k - predicted) < 1.5


@every_seed
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e10])
def test_F7_balanced_denman_beavers_takes_a_quarter_of_the_binary_digits(seed, condition):
    A = with_condition(12, condition, seed)[0]
    found = denman_beavers(A, tolerance=1e-6)
    printed = denman_beavers(A, tolerance=1e-6, balanced=False)
    assert abs(int(found.iterations) - math.log2(condition) / 4 - 4) < 1.5
    assert abs(int(printed.iterations) - math.log2(condition) / 2 - 4) < 2.5


@every_seed
@conditions
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_F8_denman_beavers_gives_both_roots_at_any_scale(seed, condition, balanced, scale):
    A, Y, Z = with_condition(12, condition, seed)
    found = denman_beavers(scale * A, iterations=20, balanced=balanced)
    assert relative(found.root, Y * math.sqrt(scale)) < tolerance(condition)
    assert relative(found.inverse_root, Z / math.sqrt(scale)) < tolerance(condition)


@every_seed
def test_F9_iternorm_is_the_coupled_iteration_in_exact_arithmetic(seed):
    A = with_condition(12, 100.0, seed)[0]
    for k in range(1, 7):
        coupled = newton_schulz(A, iterations=k, normalise="trace")
        assert relative(coupled.inverse_root, iternorm(A, k)) < 1e-11


@every_seed
def test_F9b_the_uncoupled_form_blows_up_where_the_coupled_stays(seed):
    A = with_condition(12, 100.0, seed)[0]
    best = min(whitened(iternorm(A, k), A) for k in range(1, 20))
    assert 1e-13 < best < 1e-3
    assert not whitened(iternorm(A, 30), A) < 1e6
    for k in (15, 30, 100):
        coupled = newton_schulz(A, iterations=k, normalise="trace")
        assert whitened(coupled.inverse_root, A) < 1e-12


@every_seed
def test_F9b_iterates_made_symmetric_are_unstable(seed):
    A = with_condition(12, 1e6, seed)[0]
    eye = torch.eye(12, dtype=A.dtype)
    Y, Z = A / A.norm(), eye
    for _ in range(40):
        T = linalg.symmetrize((3 * eye - Z @ Y) / 2)
        Y, Z = linalg.symmetrize(Y @ T), linalg.symmetrize(T @ Z)
    assert not float((eye - Z @ Y).norm()) < 1
    assert float(newton_schulz(A, iterations=40).residual) < 1e-10


@every_seed
@pytest.mark.parametrize(("condition", "bound"), [(1e2, 2e-5), (1e4, 1e-3), (1e6, 2e-1)])
def test_F10_in_float32_the_coupled_form_is_as_good_as_eigh(seed, condition, bound):
    A = with_condition(32, condition, seed)[0].float()
    for method in (newton_schulz, denman_beavers, eigh_roots):
        assert whitened(method(A).inverse_root, A) < bound
    assert not whitened(newton_schulz(A, iterations=30).inverse_root, A) > bound
    assert not whitened(iternorm(A, 40), A) < 1


@pytest.mark.parametrize("ratio", [1.5, 2.4, 4.0, 9.0, 100.0])
def test_F11_error_amplification_of_the_uncoupled_form(ratio):
    l = torch.tensor([1.0, ratio], dtype=torch.float64)
    A, P = torch.diag(l), torch.diag(l.rsqrt())
    E = torch.tensor([[0.0, 1e-7], [0.0, 0.0]], dtype=torch.float64)

    def step(P: Tensor) -> Tensor:
        return (3 * P - P @ P @ P @ A) / 2

    factor = float((step(P + E) - step(P))[0, 1] / E[0, 1])
    r = math.sqrt(ratio)
    assert factor == pytest.approx((2 - r - ratio) / 2, abs=1e-5)
    assert (abs(factor) < 1) == (ratio <= 2.44)


@every_seed
@pytest.mark.parametrize("step", ["_newton_schulz_step", "_denman_beavers_step"])
def test_F11_the_coupled_steps_project_errors_and_amplify_none(seed, step):
    _, Y, Z = with_condition(6, 1e2, seed)
    E, F = (1e-8 * linalg.symmetrize(normal(6, 6, seed=seed + k)) for k in (10, 20))

    def go(Y: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        Y, Z = getattr(roots, step)(Y[None], Z[None], None)
        return Y[0], Z[0]

    once = go(Y + E, Z + F)
    for later in (2, 10, 40):
        again = once
        for _ in range(later):
            again = go(*again)
        assert float((again[0] - once[0]).norm()) < 1e-4 * float((once[0] - Y).norm())
        assert float((again[1] - once[1]).norm()) < 1e-4 * float((once[1] - Z).norm())
