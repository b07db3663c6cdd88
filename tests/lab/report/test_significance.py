"""Quantiles and chances against tables, scipy and counting."""

from __future__ import annotations

import itertools

import pytest

from natgrad.lab.report.significance import behind_by_chance, misordered_by_chance, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_quantiles_are_those_of_scipy(level: float) -> None:
    t = pytest.importorskip("scipy.stats").t
    for freedom in range(1, 50):
        assert student_quantile(freedom, level) == pytest.approx(t.ppf((1 + level) / 2, freedom))


def test_a_fraction_of_a_degree_is_rounded_down_and_none_is_refused() -> None:
    assert student_quantile(2.9) == student_quantile(2)
    assert student_quantile(3 - 1e-12) == student_quantile(3)  # rounding in Welch's
    with pytest.raises(ValueError, match="at least 1 degree"):
        student_quantile(0.5)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (2, 4), (1, 5), (4, 3)])
def test_chances_are_counted(m: int, n: int) -> None:
    counts = []
    for first in itertools.combinations(range(m + n), m):
        other = set(range(m + n)) - set(first)
        counts.append(sum(a < b for a in first for b in other))
    for pairs in range(m * n + 1):
        share = sum(count <= pairs for count in counts) / len(counts)
        assert misordered_by_chance(pairs, m, n) == pytest.approx(share)


def test_signs_are_counted() -> None:
    assert behind_by_chance(0, 5) == 1 / 32
    assert behind_by_chance(1, 5) == 6 / 32
    assert behind_by_chance(5, 5) == 1
