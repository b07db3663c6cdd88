"""Which of two figures is ahead, and whether that is more than chance between seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natgrad.lab.report.ours import Ours
from natgrad.lab.report.significance import (
    CHANCE,
    behind_by_chance,
    misordered_by_chance,
    student_quantile,
)

__all__ = ["SINGLE", "UNKNOWN", "Difference", "Ranks", "ordering"]

SINGLE = "a single seed has no spread"
UNKNOWN = "its spread over seeds is not known"
UNRANKED = "the figures of the seeds are not known one by one"
FEW = "so few seeds are ordered by chance too often"


@dataclass(frozen=True)
class Difference:
    """By how much one mean is ahead of the other, with its confidence interval.

    Attributes:
        ahead: the difference of the means, positive if the first one is ahead.
        error: its standard error.
        freedom: degrees of freedom of the error.
        at_least: whether budgets stand in for targets that were not reached: then it may be more.
    """

    ahead: float
    error: float
    freedom: float
    at_least: bool = False

    @property
    def half(self) -> float:
        """Half the width of the interval: Student's quantile times the standard error."""
        return student_quantile(self.freedom) * self.error

    @property
    def leads(self) -> bool:
        """Whether the interval lies above zero."""
        return self.ahead > self.half

    @property
    def trails(self) -> bool:
        """Whether it lies below, and the difference is no more than that."""
        return not self.at_least and self.ahead < -self.half

    def written(self, places: int) -> str:
        """The difference with its interval in brackets."""
        ends = ", ".join(f"{self.ahead + each:+.{places}f}" for each in (-self.half, self.half))
        return f"{'at least ' * self.at_least}{self.ahead:+.{places}f} [{ends}]"


@dataclass(frozen=True)
class Ranks:
    """The order of seeds that have no mean, some of them having diverged or not arrived.

    Attributes:
        leading: how probable it is by chance that the first one is ahead as often as here.
        trailing: the same of the other one.
        same: of the seeds that both have: in how many the first is ahead, and how many there are.
    """

    leading: float
    trailing: float
    same: tuple[int, int] | None = None

    @property
    def leads(self) -> bool:
        """Whether the first one is ahead more often than by chance."""
        return self.leading <= CHANCE

    @property
    def trails(self) -> bool:
        """Whether the other one is."""
        return self.trailing <= CHANCE

    def written(self, places: int) -> str:
        """In how many seeds the first one is ahead."""
        return "" if self.same is None else f"ahead in {self.same[0]} of {self.same[1]} seeds"


def ordering(first: Ours, other: Ours, wants: str) -> Difference | Ranks | str:
    """Return how far the first figure is ahead of the other one, or why it cannot be told.

    Where the larger figure is claimed of a target that was not reached, the run's budget stands
    for it: it took that at least. Where the smaller one is claimed, it is infinite. What then has
    no mean is ordered by ranks, a diverged seed behind all others.

    Args:
        first: The one claimed to be ahead.
        other: The other one.
        wants: ``"higher"`` or ``"lower"`` is ahead.
    """
    if first.n == 1 or other.n == 1:
        return SINGLE
    sign = 1 if wants == "higher" else -1
    mine, theirs = _budgeted(first, other, sign)
    if mine.missing or theirs.missing:
        return _ranks(first, other, sign)
    larger = first if wants == "higher" else other
    return _difference(mine, theirs, sign, at_least=bool(larger.least))


def _budgeted(ahead: Ours, behind: Ours, sign: int) -> tuple[Ours, Ours]:
    """With budgets on that side of a claim that has the larger figure: what it says at least."""
    return (ahead.at_least(), behind) if sign > 0 else (ahead, behind.at_least())


def _difference(first: Ours, other: Ours, sign: int, at_least: bool) -> Difference | str:
    """By Student's t of the differences seed by seed, or by Welch's."""
    mine, theirs = first.by_seed, other.by_seed
    if len(mine) > 1 and mine.keys() == theirs.keys():
        differences = [sign * (mine[seed] - theirs[seed]) for seed in mine]
        n = len(differences)
        error = statistics.stdev(differences) / math.sqrt(n)
        return Difference(statistics.fmean(differences), error, n - 1, at_least)
    squares = []  # of the standard error of each mean, with its degrees of freedom
    for each in (first, other):
        if each.sd is None or (each.sd > 0 and each.n is None):
            return UNKNOWN
        if each.n is not None:
            squares.append((each.sd**2 / each.n, each.n - 1))
    total = sum(square for square, _ in squares)
    spread = sum(square**2 / freedom for square, freedom in squares)
    freedom = total**2 / spread if spread else 1.0
    return Difference(sign * (first.mean - other.mean), math.sqrt(total), freedom, at_least)


def _ranks(first: Ours, other: Ours, sign: int) -> Ranks | str:
    """By the exact test of Mann and Whitney, of a bound by the sign test.

    Pairs that cannot be told apart are not ahead.
    """
    known = [bool(ours.by_seed) or ours.n is None for ours in (first, other)]
    none = [ours.n is not None and ours.missing == ours.n for ours in (first, other)]
    if not (all(known) or any(none)):
        return UNRANKED
    leading = _chance(*_budgeted(first, other, sign), sign)
    trailing = _chance(*_budgeted(other, first, sign), sign)
    mine, theirs = _budgeted(first, other, sign)
    if leading > CHANCE and all(_ahead(a, b, sign) for a, b in _pairs(mine, theirs)):
        return FEW
    return Ranks(leading, trailing, _wins(mine, theirs, sign))


def _pairs(a: Ours, b: Ours) -> Iterator[tuple[float, float]]:
    return itertools.product(_values(a), _values(b))


def _chance(ahead: Ours, behind: Ours, sign: int) -> float:
    misordered = sum(not _ahead(a, b, sign) for a, b in _pairs(ahead, behind))
    if ahead.n is None or behind.n is None:
        return behind_by_chance(misordered, ahead.n or behind.n or 0)
    return misordered_by_chance(misordered, ahead.n, behind.n)


def _wins(first: Ours, other: Ours, sign: int) -> tuple[int, int] | None:
    """Of the seeds that both have: in how many the first is ahead, and how many there are."""
    both = [(x, other.by_seed[seed]) for seed, x in first.by_seed.items() if seed in other.by_seed]
    return (sum(_ahead(a, b, sign) for a, b in both), len(both)) if both else None


def _values(ours: Ours) -> Sequence[float]:
    """A value of each seed; where they are not known one by one the mean stands for each."""
    if ours.by_seed:
        return list(ours.by_seed.values())
    return [ours.mean] * ((ours.n or 1) - ours.missing) + [math.inf] * ours.missing


def _ahead(a: float, b: float, sign: int) -> bool:
    """Whether a is ahead of b: anything is of a seed that diverged, which is ahead of nothing."""
    return not math.isnan(a) and (math.isnan(b) or sign * a > sign * b)
