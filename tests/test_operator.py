"""The operator: products, solutions, trace and spectrum against the matrix written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.fisher import STRUCTURES
from natgrad.operator import Fisher
from tests.networks import mlp, normal, relative

every_structure = pytest.mark.parametrize("structure", STRUCTURES)
right_hand_sides = pytest.mark.parametrize("columns", [(), (1,), (3,)])


def operator(structure: str, examples: int = 12, frozen: bool = False, **kwargs) -> Fisher:
    net = mlp(3, 4, 2)
    net[0].bias.requires_grad_(not frozen)
    x = normal(examples, 3)
    return natgrad.fisher(net, x, Categorical(), structure=structure, **kwargs)


@every_structure
@right_hand_sides
@pytest.mark.parametrize("frozen", [False, True])
def test_products_are_those_of_the_matrix(structure, columns, frozen):
    F = operator(structure, frozen=frozen)
    v = normal(F.size, *columns)
    assert relative(F @ v, F.dense() @ v) < 1e-12
    assert (F @ v).shape == v.shape


@every_structure
@right_hand_sides
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_solutions_are_those_of_the_damped_matrix(structure, columns, frozen, damping):
    F = operator(structure, frozen=frozen)
    v = normal(F.size, *columns)
    damped = F.dense() + damping * torch.eye(F.size, dtype=v.dtype)
    assert relative(F.solve(v, damping), torch.linalg.solve(damped, v)) < 1e-10


@every_structure
@right_hand_sides
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("examples", [2, 12])
def test_undamped_solutions_are_those_of_the_pseudo_inverse(structure, columns, frozen, examples):
    F = operator(structure, examples, frozen)
    v = normal(F.size, *columns)
    dense = F.dense()
    expected = torch.linalg.pinv(dense, hermitian=True, rtol=1e-12) @ v
    l = F.eigvalsh()
    condition = float(l[-1] / l[l > 1e-12 * l[-1]][0])
    assert relative(F.solve(v, 0.0), expected) < max(1e-10, 50 * 2.2e-16 * condition)


def test_solutions_at_several_dampings_do_not_depend_on_their_order():
    F = operator("tekfac")
    v = normal(F.size)
    first = F.solve(v, 0.1)
    assert relative(F.solve(v, 1.0), first) > 0.1
    assert torch.equal(F.solve(v, 0.1), first)
    assert torch.equal(v, normal(F.size))


@every_structure
@pytest.mark.parametrize("frozen", [False, True])
def test_trace_and_spectrum_are_those_of_the_matrix(structure, frozen):
    F = operator(structure, frozen=frozen)
    dense = F.dense()
    expected = torch.linalg.eigvalsh(dense)
    found = F.eigvalsh()
    assert float(F.trace()) == pytest.approx(float(dense.trace()), rel=1e-12)
    assert relative(found, expected[-len(found) :]) < 1e-10
    assert bool((found.diff() >= 0).all())
    assert len(found) == (F.size if structure == "dense" else F.size - 4 * frozen)


@every_structure
def test_the_condition_number_is_the_ratio_of_the_damped_extremes(structure):
    F = operator(structure)
    l = torch.linalg.eigvalsh(F.dense())
    expected = float((l[-1] + 0.1) / (l[0].clamp_min(0) + 0.1))
    assert float(F.condition_number(0.1)) == pytest.approx(expected, rel=1e-10)


def test_a_well_conditioned_matrix_has_the_condition_number_of_linear_algebra():
    F = natgrad.fisher(mlp(3, 2), normal(20, 3), Gaussian(), structure="block")
    expected = float(torch.linalg.cond(F.dense()))
    assert float(F.condition_number()) == pytest.approx(expected, rel=1e-10)


def test_a_singular_matrix_has_an_infinite_condition_number():
    net = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    x = normal(5, 3)
    x[:, 1] = 0
    F = natgrad.fisher(net, x, Gaussian(), structure="diagonal")
    assert float(F.condition_number()) == float("inf")


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ("dense", r"the dense 26 x 26 matrix would take .* beyond the limit"),
        ("block", r"the exact block of layer '0' would take .* beyond the limit"),
    ],
)
def test_a_matrix_beyond_the_limit_is_refused_before_any_work(structure, said):
    with pytest.raises(ValueError, match=said):
        operator(structure, limit=8 * 100)


def test_writing_out_refuses_with_the_size_it_would_need():
    big = nn.Linear(300, 300)
    F = natgrad.fisher(big, torch.randn(2, 300), Gaussian(), structure="kfac")
    assert F.shape == (90300, 90300)
    with pytest.raises(ValueError, match=r"90300 x 90300 matrix would take 30\.4 GiB.*2\.0 GiB"):
        F.dense()
    with pytest.raises(ValueError, match="would take"):
        operator("diagonal").dense(limit=8 * 26**2 - 1)
    assert operator("diagonal").dense(limit=8 * 26**2).shape == (26, 26)


@every_structure
def test_a_vector_of_the_wrong_length_and_a_negative_damping_are_refused(structure):
    F = operator(structure)
    with pytest.raises(ValueError, match=r"expected a vector \[26\] or \[26, k\]"):
        F @ normal(25)
    with pytest.raises(ValueError, match=r"expected a vector \[26\] or \[26, k\]"):
        F.solve(normal(26, 2, 2), 0.1)
    with pytest.raises(ValueError, match="damping must be >= 0"):
        F.solve(normal(26), -1e-3)


@every_structure
def test_vectors_keep_their_dtype(structure):
    F = operator(structure)
    v = normal(F.size).float()
    found: Tensor = F.solve(v, 0.1)
    assert found.dtype == (F @ v).dtype == torch.float32
    assert relative(found.double(), F.solve(v.double(), 0.1)) < 1e-5


@every_structure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_statistics_are_never_below_single_precision(structure, dtype):
    net, x = mlp(3, 4, 2), normal(12, 3)
    exact = natgrad.fisher(net, x, Categorical(), structure=structure)
    found = natgrad.fisher(net.to(dtype), x.to(dtype), Categorical(), structure=structure)
    assert found.dense().dtype == torch.float32
    assert relative(found.dense().double(), exact.dense()) < 0.1
