"""Which steps take statistics, and which decompose."""

from __future__ import annotations

from dataclasses import dataclass

from natgrad.arguments import check_range

__all__ = ["Schedule"]


@dataclass
class Schedule:
    """Steps count from 0: statistics when ``k % stats_every == 0``, decompositions likewise.

    Args:
        stats_every: steps between statistics.
        refresh_every: steps between decompositions.
        burn_in: the first so many steps do both, each of them.
        forced: whether the next step decomposes whatever its number.

    Raises:
        ValueError: an argument out of range.
    """

    stats_every: int = 1
    refresh_every: int = 1
    burn_in: int = 0
    forced: bool = False

    def __post_init__(self) -> None:
        for name, least in (("stats_every", 1), ("refresh_every", 1), ("burn_in", 0)):
            value = getattr(self, name)
            check_range(name, value, value >= least, f"at least {least}")

    def takes_statistics(self, k: int) -> bool:
        """Whether step ``k`` does."""
        return k < self.burn_in or k % self.stats_every == 0

    def refreshes(self, k: int) -> bool:
        """Whether step ``k`` decomposes."""
        return self.forced or k < self.burn_in or k % self.refresh_every == 0

    def passed(self) -> None:
        """A step was taken."""
        self.forced = False
