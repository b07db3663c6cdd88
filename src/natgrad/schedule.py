"""Which steps take statistics, and which decompose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from natgrad.arguments import check_range

__all__ = ["EVERY", "Schedule", "balanced"]

EVERY = range(2**31)  #: layers, however many there are
NONE = range(0)


@dataclass
class Schedule:
    """Steps count from 0: statistics when ``k % stats_every == 0``, decompositions likewise.

    Args:
        stats_every: steps between statistics.
        refresh_every: steps between decompositions.
        burn_in: the first so many steps do both, each of them.
        forced: whether the next step decomposes everything whatever its number.
        spread: share the layers' decompositions out over the interval by :meth:`share_out`; only
            the first step, those of burning in and forced ones decompose everything.

    Raises:
        ValueError: an argument out of range.
    """

    stats_every: int = 1
    refresh_every: int = 1
    burn_in: int = 0
    forced: bool = False
    spread: bool = False
    slots: dict[int, frozenset[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("stats_every", 1), ("refresh_every", 1), ("burn_in", 0)):
            value = getattr(self, name)
            check_range(name, value, value >= least, f"at least {least}")

    def takes_statistics(self, k: int) -> bool:
        """Whether step ``k`` does."""
        return k < self.burn_in or k % self.stats_every == 0

    def refreshes(self, k: int) -> bool:
        """Whether step ``k`` decomposes anything."""
        return bool(self.due(k))

    def due(self, k: int) -> Collection[int]:
        """The layers that step ``k`` decomposes, by index: all, some of them, or none."""
        at_once = k == 0 if self.spread else k % self.refresh_every == 0
        if self.forced or k < self.burn_in or at_once:
            return EVERY
        return self.slots.get(k % self.refresh_every, NONE)

    def share_out(self, costs: Sequence[float]) -> None:
        """Give each layer its step ``k % refresh_every``, the same work to each such step.

        The steps that get any lie evenly in the interval. Nothing happens without ``spread``.

        Args:
            costs: of each layer's decomposition.
        """
        if not self.spread:
            return
        bins = balanced(costs, self.refresh_every)
        count = max(len(bins), 1)
        self.slots = {
            place * self.refresh_every // count: frozenset(members)
            for place, members in enumerate(bins)
        }

    def passed(self) -> None:
        """A step was taken."""
        self.forced = False


def balanced(costs: Sequence[float], most: int) -> list[list[int]]:
    """Indices of ``costs`` in at most ``most`` groups of about equal sums, none of them empty.

    The dearest first, each to the group that has least so far; of equals the first.
    """
    groups: list[list[int]] = [[] for _ in range(min(most, len(costs)))]
    sums = [0.0] * len(groups)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = min(range(len(groups)), key=lambda place: (sums[place], len(groups[place])))
        groups[least].append(index)
        sums[least] += costs[index]
    return groups
