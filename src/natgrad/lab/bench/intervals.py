"""How often statistics are taken and matrices decomposed, and what that makes of a step's time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from natgrad.lab.errors import UsageError

__all__ = ["KINDS", "SHORT", "Interval", "Kind", "Rhythm", "amortised"]

Kind: TypeAlias = Literal["plain", "statistics", "refresh"]
KINDS: tuple[Kind, ...] = ("plain", "statistics", "refresh")


@dataclass(frozen=True)
class Interval:
    """Statistics every ``statistics`` steps, decompositions every ``refresh``: ``10/100``.

    Raises:
        UsageError: not positive, or decompositions without new statistics.
    """

    statistics: int
    refresh: int

    def __post_init__(self) -> None:
        if self.statistics < 1 or self.refresh < 1 or self.refresh % self.statistics:
            raise UsageError(
                f"interval {self}: both numbers are at least 1, and the second a multiple of the "
                "first, as in 10/100"
            )

    def __str__(self) -> str:
        return f"{self.statistics}/{self.refresh}"

    @classmethod
    def read(cls, text: str) -> Interval:
        """From ``"10/100"``.

        Raises:
            UsageError: not of this form.
        """
        first, slash, second = text.strip().partition("/")
        if not (slash and first.isdecimal() and second.isdecimal()):
            raise UsageError(f'an interval is written 10/100 (statistics/refresh), got "{text}"')
        return cls(int(first), int(second))


#: what is measured: it has steps of every kind, and few of them
SHORT = Interval(2, 6)


@dataclass(frozen=True)
class Rhythm:
    """Which of a method's steps do more than a plain one.

    Attributes:
        follows: what of an interval the method heeds: ``"both"`` numbers; the ``"first"`` or the
            ``"second"`` as the period of all that it renews; or ``"none"``.
        late: it renews at the last step of a period, not at the first.
    """

    follows: Literal["none", "both", "first", "second"] = "none"
    late: bool = False

    def refresh_every(self, interval: Interval) -> int | None:
        """Steps from one refresh to the next."""
        if self.follows == "none":
            return None
        return interval.statistics if self.follows == "first" else interval.refresh

    def kind(self, k: int, interval: Interval) -> Kind:
        """What step ``k`` (from 0) does."""
        every = self.refresh_every(interval)
        if every is None:
            return "plain"
        if (k + self.late) % every == 0:
            return "refresh"
        takes = self.follows == "both" and k % interval.statistics == 0
        return "statistics" if takes else "plain"

    def shares(self, interval: Interval) -> dict[Kind, float]:
        """The share of each kind in many steps.

        >>> Rhythm("both").shares(Interval(10, 100))
        {'plain': 0.9, 'statistics': 0.09, 'refresh': 0.01}
        """
        every = self.refresh_every(interval)
        if every is None:
            return {"plain": 1.0, "statistics": 0.0, "refresh": 0.0}
        statistics = every // interval.statistics - 1 if self.follows == "both" else 0
        counts: dict[Kind, int] = {
            "plain": every - statistics - 1,
            "statistics": statistics,
            "refresh": 1,
        }
        return {kind: count / every for kind, count in counts.items()}

    def describe(self, interval: Interval) -> str:
        """What is renewed when, in short: ``10/100``, ``10``, or a dash."""
        every = self.refresh_every(interval)
        if every is None:
            return "-"
        return str(interval) if self.follows == "both" else str(every)


def amortised(times: Mapping[Kind, float], shares: Mapping[Kind, float]) -> float | None:
    """The mean time of a step, of the times of each kind; None where one that occurs is unknown.

    >>> amortised({"plain": 1.0, "refresh": 101.0}, {"plain": 0.99, "refresh": 0.01})
    2.0
    """
    needed = {kind: share for kind, share in shares.items() if share}
    if any(kind not in times for kind in needed):
        return None
    return sum(share * times[kind] for kind, share in needed.items())
