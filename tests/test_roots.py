"""Square roots of stacks: error, shapes, stopping, failures, precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natgrad import roots
from natgrad.roots import denman_beavers, eigh_roots, newton_schulz, square_roots
from tests.networks import normal, relative
from tests.spectra import with_condition, with_eigenvalues

METHODS = ["eigh", "newton-schulz", "denman-beavers"]
ITERATIONS = [newton_schulz, denman_beavers]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# The error is this times eps times the condition number, which is what rounding of A costs.
FACTOR = {"eigh": 1.0, "newton-schulz": 1 / 8, "denman-beavers": 1 / 8}
KNOWN = {torch.float32: range(0, 7, 2), torch.float64: range(0, 11, 2)}
every_method = pytest.mark.parametrize("method", METHODS)
every_iteration = pytest.mark.parametrize("iteration", ITERATIONS)


@every_method
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(dtype, k) for dtype, known in KNOWN.items() for k in known]
)
def test_roots_of_a_known_eigenbasis(method, device, seed, dtype, exponent):
    condition = 10.0**exponent
    A, Y, Z = with_condition(48, condition, seed)
    found = square_roots(A.to(device, dtype), method)
    tolerance = torch.finfo(dtype).eps * (50 + FACTOR[method] * condition)
    assert relative(found.inverse_root.cpu().double(), Z) < tolerance
    assert relative(found.root.cpu().double(), Y) < tolerance
    assert float(found.residual) < torch.finfo(dtype).eps * (300 + 2 * math.sqrt(48 * condition))
    assert {found.root.dtype, found.inverse_root.dtype, found.residual.dtype} == {dtype}


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_made_indefinite_is_reported_by_its_residual(method, seed):
    A = with_condition(48, 1e10, seed)[0].float()
    assert float(torch.linalg.eigvalsh(A.double())[0]) < 0
    assert float(square_roots(A, method).residual) >= 1


@pytest.mark.parametrize("seed", range(3))
def test_newton_schulz_stops_where_its_residual_grows_and_keeps_a_finite_iterate(seed):
    found = newton_schulz(with_condition(48, 1e10, seed)[0].float())
    assert int(found.iterations) < 40
    assert bool(found.inverse_root.isfinite().all())
    assert 1 <= float(found.residual) < math.sqrt(48)


@every_method
@given(
    batch=st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 0)]),
    d=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_roots_of_a_stack(method, batch, d, seed):
    X = normal(*batch, d, d, seed=seed)
    A = X @ X.mT + 0.1 * torch.eye(d, dtype=X.dtype)
    before = A.clone()
    found = square_roots(A, method)
    assert torch.equal(A, before)
    assert found.root.shape == found.inverse_root.shape == A.shape
    assert found.residual.shape == found.iterations.shape == batch
    assert torch.allclose(found.root @ found.root, A, rtol=1e-9, atol=1e-9)
    eye = torch.eye(d, dtype=A.dtype).expand(A.shape)
    assert torch.allclose(found.inverse_root @ found.root, eye, atol=1e-9)
    assert torch.equal(found.root, found.root.mT)
    assert torch.equal(found.inverse_root, found.inverse_root.mT)


@every_iteration
def test_each_matrix_of_a_stack_stops_by_itself(iteration):
    stack = torch.stack([with_condition(12, condition)[0] for condition in (1e6, 1.5, 1e3, 1e6)])
    together = iteration(stack, tolerance=1e-7)
    assert len(set(together.iterations.tolist())) == 3
    for k, A in enumerate(stack):
        alone = iteration(A, tolerance=1e-7)
        assert int(together.iterations[k]) == int(alone.iterations)
        assert relative(together.root[k], alone.root) < 1e-12
        assert relative(together.inverse_root[k], alone.inverse_root) < 1e-9
        assert float(together.residual[k]) == pytest.approx(float(alone.residual), abs=1e-11)


BAD = {
    "nan": torch.full((4, 4), math.nan),
    "inf": torch.diag(torch.tensor([1.0, 1.0, math.inf, 1.0])),
    "zero": torch.zeros(4, 4),
    "singular": torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0])),
    "indefinite": torch.diag(torch.tensor([1.0, 2.0, -3.0, 1.0])),
    "negative": -torch.eye(4),
}


@every_method
@pytest.mark.parametrize("options", [{}, {"iterations": 12}], ids=["stopped", "counted"])
@pytest.mark.parametrize("bad", BAD)
def test_a_matrix_that_fails_says_so_and_spoils_no_other(method, options, bad):
    options = {} if method == "eigh" else options
    good = [with_condition(4, condition)[0] for condition in (10.0, 100.0)]
    stack = torch.stack([good[0], BAD[bad].double(), good[1]])
    found = square_roots(stack, method, **options)
    assert float(found.residual[1]) >= 1  # false for NaN
    for k, A in zip((0, 2), good, strict=True):
        alone = square_roots(A, method, **options)
        assert float(found.residual[k]) < 1e-10
        assert int(found.iterations[k]) == int(alone.iterations)
        assert relative(found.inverse_root[k], alone.inverse_root) < 1e-12
    if bad in ("nan", "inf"):
        assert math.isinf(float(found.residual[1]))
        assert bool(found.root[1].isnan().all() & found.inverse_root[1].isnan().all())
        assert int(found.iterations[1]) == 0


def test_what_is_not_finite_never_reaches_the_eigendecomposition(monkeypatch):
    true_eigh = torch.linalg.eigh

    def asserts_finite(M: Tensor):
        assert bool(M.isfinite().all())
        return true_eigh(M)

    monkeypatch.setattr(torch.linalg, "eigh", asserts_finite)
    found = eigh_roots(torch.stack([torch.eye(4), BAD["nan"], BAD["inf"]]))
    assert (found.residual < 1).tolist() == [True, False, False]


@every_iteration
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_tolerance_in_reach_it_stops_at_the_rounding_floor(iteration, dtype):
    A = with_condition(32, 1e4)[0].to(dtype)
    found = iteration(A, tolerance=0.0)
    reached = [float(iteration(A, iterations=k).residual) for k in range(1, 40)]
    near = 1 + next(k for k, residual in enumerate(reached) if residual < 4 * min(reached))
    assert int(found.iterations) <= near + 3  # a factor of 4 is two halvings, then one in vain
    assert float(found.residual) < 4 * min(reached)


@every_iteration
def test_of_the_last_two_iterates_the_better_is_kept(iteration):
    for seed in range(6):
        A = with_condition(16, 1e4, seed)[0].float()
        found = iteration(A, tolerance=0.0)
        k = int(found.iterations)
        ends = [iteration(A, iterations=n) for n in (k - 1, k)]
        assert float(found.residual) == min(float(end.residual) for end in ends)
        assert any(torch.equal(found.root, end.root) for end in ends)


@every_iteration
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_level_residual_before_convergence_is_no_floor(iteration, seed, dtype, small):
    l = torch.full((40,), small, dtype=torch.float64)
    l[0] = 1
    A, _, Z = with_eigenvalues(l, seed)
    found = iteration(A.to(dtype))
    assert float(found.residual) < 1e-2
    assert relative(found.inverse_root.double(), Z) < 3e-2


def test_rounding_of_a_level_residual_is_no_growth():
    last = torch.tensor([1.0, 1.0, 1.0, math.inf])
    now = torch.tensor([1.0, 1.0001, 1.01, math.nan])
    assert roots._settled(now, last, 1e-6).tolist() == [False, False, True, True]


@every_iteration
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_it_stops_at_the_first_iterate_within_the_tolerance(iteration, tolerance):
    A = with_condition(12, 1e3)[0]
    found = iteration(A, tolerance=tolerance)
    k = int(found.iterations)
    assert float(found.residual) <= tolerance
    assert float(iteration(A, iterations=k - 1).residual) > tolerance
    assert torch.equal(iteration(A, iterations=k).root, found.root)


@every_iteration
def test_iterations_bound_what_a_tolerance_asks_for(iteration):
    A = with_condition(12, 1e6)[0]
    found = iteration(A, tolerance=1e-8, iterations=3)
    assert int(found.iterations) == 3
    assert torch.equal(found.root, iteration(A, iterations=3).root)
    assert int(iteration(A, tolerance=1e-8, iterations=90).iterations) < 30


@pytest.mark.parametrize("k", [1, 2, 5])
def test_newton_schulz_is_its_formula(k):
    A = with_condition(6, 10.0)[0]
    c, eye = A.norm(), torch.eye(6, dtype=A.dtype)
    Y, Z = A / c, eye
    for _ in range(k):
        T = (3 * eye - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    found = newton_schulz(A, iterations=k)
    assert relative(found.root, c.sqrt() * Y) < 1e-14
    assert relative(found.inverse_root, Z / c.sqrt()) < 1e-14
    assert float(found.residual) == pytest.approx(float((eye - Z @ Y).norm()), abs=1e-13)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("balanced", [True, False])
def test_denman_beavers_is_its_formula(k, balanced):
    A = 3 * with_condition(6, 10.0)[0]
    c = (A.norm() / torch.linalg.inv(A).norm()).sqrt() if balanced else torch.ones(())
    Y, Z = A / c, torch.eye(6, dtype=A.dtype)
    for _ in range(k):
        Y, Z = (Y + torch.linalg.inv(Z)) / 2, (Z + torch.linalg.inv(Y)) / 2
    found = denman_beavers(A, iterations=k, balanced=balanced)
    assert relative(found.root, c.sqrt() * Y) < 1e-13
    assert relative(found.inverse_root, Z / c.sqrt()) < 1e-13


@every_method
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_roots_scale_with_the_root_of_the_scale(method, scale):
    A, Y, Z = with_condition(8, 100.0)
    found = square_roots((scale * A).float(), method)
    assert relative(found.root.double(), math.sqrt(scale) * Y) < 2e-5
    assert relative(found.inverse_root.double(), Z / math.sqrt(scale)) < 2e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(method, dtype):
    A = with_eigenvalues(torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64))[0].to(dtype)
    found, full = square_roots(A, method), square_roots(A.float(), method)
    assert torch.equal(found.root, full.root.to(dtype))
    assert torch.equal(found.inverse_root, full.inverse_root.to(dtype))
    assert torch.equal(found.residual, full.residual)


@every_method
def test_autocast_is_switched_off(method):
    A = with_condition(32, 100.0)[0].float()
    expected = square_roots(A, method)
    with torch.autocast("cpu", torch.bfloat16):
        assert (A @ A).dtype == torch.bfloat16
        found = square_roots(A, method)
    assert torch.equal(found.inverse_root, expected.inverse_root)


def backends_precision() -> list[str]:
    return [getattr(torch.backends, name).matmul.fp32_precision for name in ("cuda", "mkldnn")]


def spied(monkeypatch, look) -> list[object]:
    seen: list[object] = []
    norm = roots._norm

    def spy(M: Tensor) -> Tensor:
        seen.append(look())
        return norm(M)

    monkeypatch.setattr(roots, "_norm", spy)
    return seen


@pytest.fixture
def reduced_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
@pytest.mark.usefixtures("reduced_precision")
def test_products_are_not_rounded_to_tf32_and_the_setting_comes_back(monkeypatch):
    before = backends_precision()
    assert before == ["tf32", "tf32"]
    seen = spied(monkeypatch, backends_precision)
    newton_schulz(torch.eye(3))
    assert seen == [["ieee", "ieee"]]
    assert backends_precision() == before
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("reduced_precision")
def test_the_setting_comes_back_after_an_exception(monkeypatch):
    def fails(M: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(roots, "_norm", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        newton_schulz(torch.eye(3))
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("reduced_precision")
def test_older_torch_has_one_setting_for_all(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    seen = spied(monkeypatch, torch.get_float32_matmul_precision)
    newton_schulz(torch.eye(3))
    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == "high"


@every_method
def test_roots_are_constants_to_autograd(method):
    A = with_condition(4, 10.0)[0].requires_grad_()
    found = square_roots(A, method)
    assert not found.root.requires_grad
    assert not found.inverse_root.requires_grad
    assert not found.residual.requires_grad


def test_the_front_door_leads_to_the_functions():
    A = with_condition(5, 30.0)[0]
    assert torch.equal(square_roots(A).root, eigh_roots(A).root)
    for method, iteration in zip(METHODS[1:], ITERATIONS, strict=True):
        for options in ({"iterations": 2}, {"tolerance": 0.1}):
            found, expected = square_roots(A, method, **options), iteration(A, **options)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A: square_roots(A, "svd"), "method must be 'eigh', .* got 'svd'"),
        (lambda A: square_roots(A, "eigh", iterations=3), "neither tolerance nor iterations"),
        (lambda A: square_roots(A, "eigh", tolerance=0.1), "neither tolerance nor iterations"),
        (lambda A: newton_schulz(A, normalise="spectral"), "or None, got 'spectral'"),
        (lambda A: newton_schulz(A, iterations=0), "1 or more, got 0"),
        (lambda A: denman_beavers(A, tolerance=-1e-3), "0 or more, got -0.001"),
        (lambda A: denman_beavers(A, tolerance=math.nan), "0 or more, got nan"),
        (lambda A: eigh_roots(A[0]), r"got \(3,\) of torch.float32"),
        (lambda A: eigh_roots(A[:2]), r"got \(2, 3\) of torch.float32"),
        (lambda A: eigh_roots(A[:0, :0]), r"got \(0, 0\) of torch.float32"),
        (lambda A: newton_schulz(A.long()), "of torch.int64"),
    ],
)
def test_impossible_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.eye(3))
