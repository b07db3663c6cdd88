"""When a difference between a few seeds is more than chance."""

from __future__ import annotations

import math
from functools import cache

__all__ = ["CHANCE", "LEVEL", "behind_by_chance", "misordered_by_chance", "student_quantile"]

LEVEL = 0.95  #: of the confidence intervals
CHANCE = 1 / 20  #: that an order of ranks counts as more than
ROUNDING = 1e-9


def student_quantile(freedom: float, level: float = LEVEL) -> float:
    """The ``t`` with ``P(|T| <= t) = level`` for Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1; a fraction (Welch's) is rounded down, which makes
            the quantile a little too large.
        level: of the interval between ``-t`` and ``t``, below 1.

    Raises:
        ValueError: less than one degree of freedom.

    >>> [round(student_quantile(n), 3) for n in (1, 2, 4, 10)]
    [12.706, 4.303, 2.776, 2.228]
    """
    whole = math.floor(freedom + ROUNDING)
    if whole < 1:
        raise ValueError(f"expected at least 1 degree of freedom, got {freedom}")
    low, high = 0.0, math.pi / 2  # theta = arctan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, whole) < level else (low, middle)
    return math.sqrt(whole) * math.tan(low)


def _within(theta: float, freedom: int) -> float:
    """``P(|T| <= sqrt(freedom) tan theta)``: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def misordered_by_chance(pairs: int, m: int, n: int) -> float:
    """``P(U <= pairs)`` of Mann and Whitney's ``U``, exactly, where all orders are as likely.

    Args:
        pairs: how many of the ``m n`` pairs, one value of each group, are not ordered as claimed.
        m: values of one group.
        n: values of the other one.

    >>> misordered_by_chance(0, 3, 3)
    0.05
    """
    return sum(_orders(u, m, n) for u in range(pairs + 1)) / math.comb(m + n, m)


def behind_by_chance(behind: int, n: int) -> float:
    """``P(B <= behind)`` of the sign test: of ``n`` values so few are not ahead of their median.

    >>> behind_by_chance(0, 3)
    0.125
    """
    return sum(math.comb(n, k) for k in range(behind + 1)) / (1 << n)


@cache
def _orders(pairs: int, m: int, n: int) -> int:
    """Orders of ``m`` and ``n`` values with so many pairs the wrong way round."""
    if pairs < 0:
        return 0
    if m == 0 or n == 0:
        return int(pairs == 0)
    return _orders(pairs - n, m - 1, n) + _orders(pairs, m, n - 1)
