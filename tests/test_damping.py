"""Damping rules."""

from __future__ import annotations

import pytest
import torch

from natgrad.damping import Constant, EigenvalueDamping, Factored, FactoredDamping, checked
from tests.networks import normal


@pytest.mark.parametrize("value", [0, 1, 0.5, 1e-12])
def test_a_finite_number_from_zero_on_is_a_damping(value):
    assert checked(value) == value
    assert isinstance(checked(value), float)


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf"), -float("inf")])
def test_other_numbers_are_refused(value):
    with pytest.raises(ValueError, match=f"damping must be a finite number >= 0, got {value}"):
        checked(value)


@pytest.mark.parametrize("value", [None, "1e-3", (1e-3,)])
def test_what_has_no_rule_is_refused(value):
    with pytest.raises(TypeError, match=f"got {type(value).__name__}"):
        checked(value)


def test_rules_answer_one_of_two_questions():
    assert isinstance(Factored(0.1), FactoredDamping)
    assert not isinstance(Factored(0.1), EigenvalueDamping)
    assert isinstance(Constant(0.1), EigenvalueDamping)
    assert not isinstance(Constant(0.1), FactoredDamping)


def test_a_rule_of_ones_own_needs_one_method():
    class Twice:
        def ridge(self, trace, dim):
            return 2 * trace / dim

    assert checked(found := Twice()) is found


def test_factored_damping_is_shared_out_by_pi():
    A, G = torch.diag(torch.tensor([8.0, 8.0])), torch.diag(torch.tensor([3.0, 1.0]))
    ridge_A, ridge_G = Factored(0.04).ridges(A.trace(), G.trace(), 2, 2)
    assert float(ridge_A) == pytest.approx(2 * 0.2)
    assert float(ridge_G) == pytest.approx(0.2 / 2)


def test_constant_damping_does_not_look_at_the_block():
    assert Constant(0.3).ridge(normal(1)[0], 7) == 0.3
