"""Damping that follows how well the quadratic model foretells the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

from torch import Tensor

from natgrad.damping.fixed import Factored

__all__ = ["LevenbergMarquardt"]


@dataclass
class LevenbergMarquardt:
    """Damping by the reduction ratio (Martens & Grosse 2015, arXiv 1503.05671, section 6.5).

    Every ``every`` steps the loss ``h`` is evaluated once more, after the step ``delta``, and its
    change compared with that of the quadratic model ``M(delta) = <g, delta> + 1/2 <delta, F
    delta>``, which has no damping in it:

    ``rho = (h(w + delta) - h(w)) / M(delta)``, ``value <- value / w`` where ``rho < low``,
    ``value <- value w`` where ``rho > high``, with ``w = decay^every``.

    A step that raised the loss of its own batch, or left it not finite, is taken back, and
    ``value`` grows by ``rejected`` besides. What the value is added to is the block's own matter,
    as for a plain number as damping: K-FAC splits it over its factors with ``pi``, EKFAC adds it to
    its eigenvalues.

    Where the optimizer is not natgrad's own (:class:`natgrad.Preconditioner`), call :meth:`adapt`.

    Args:
        value: at the start.
        every: steps between evaluations.
        decay: per step.
        low: below this ratio the value grows.
        high: above this ratio the value shrinks.
        minimum: of the value. Without one the damping can run away downwards: tiny steps are always
            foretold well, and with too little damping steps become tiny. Least squares to high
            accuracy wants a smaller one.
        maximum: of the value.
        reject_every: steps between looks at whether the loss rose, each of which costs the loss
            once more. A bad step between two looks stays. None never takes a step back.
        rejected: what the value is multiplied by when a step is taken back.
        factors_every: steps between searches for a damping of the blocks of its own, by
            :class:`natgrad.tuning.factors.FactorSearch` (section 6.6); None gives them the value.
        of_factors: found by the last search.

    Raises:
        ValueError: an argument out of range.
    """

    value: float = 1.0
    every: int = 5
    decay: float = 0.95
    low: float = 0.25
    high: float = 0.75
    minimum: float = 1e-4
    maximum: float = inf
    reject_every: int | None = 1
    rejected: float = 2.0
    factors_every: int | None = None
    of_factors: float | None = field(default=None, repr=False)  #: found by the last search

    def __post_init__(self) -> None:
        in_range = {
            "value": 0 <= self.value < inf,
            "every": self.every >= 1,
            "decay": 0 < self.decay <= 1,
            "low": self.low <= self.high,
            "minimum": 0 <= self.minimum <= self.maximum,
            "reject_every": self.reject_every is None or self.reject_every >= 1,
            "rejected": 1 <= self.rejected < inf,
            "factors_every": self.factors_every is None or self.factors_every >= 1,
        }
        for name, fine in in_range.items():
            if not fine:
                raise ValueError(f"{name} is out of range: {getattr(self, name)}")

    def measures(self, step: int) -> bool:
        """Whether the reduction ratio is wanted of step ``step``, counted from 0."""
        return (step + 1) % self.every == 0

    def looks(self, step: int) -> bool:
        """Whether step ``step`` is to be taken back if the loss rose."""
        return self.reject_every is not None and (step + 1) % self.reject_every == 0

    def adapt(self, ratio: float) -> None:
        """Take a reduction ratio into account; one that is not finite counts as a bad one."""
        factor = self.decay**self.every
        if not (isfinite(ratio) and ratio >= self.low):
            self._set(self.value / factor)
        elif ratio > self.high:
            self._set(self.value * factor)

    def reject(self) -> None:
        """A step was taken back."""
        self._set(self.value * self.rejected)
        if self.of_factors is not None:
            self.of_factors *= self.rejected

    def _set(self, value: float) -> None:
        self.value = min(max(value, self.minimum), self.maximum)

    @property
    def for_factors(self) -> float:
        """What blocks are damped with."""
        return self.value if self.of_factors is None else self.of_factors

    @property
    def factors_ratio(self) -> float:
        """Between neighbouring candidates of a search."""
        return self.decay ** (self.factors_every or 0)

    def ridge(self, trace: Tensor, dim: int) -> float:
        """The value for blocks, whatever the block."""
        return self.for_factors

    def following(self, default: object) -> LevenbergMarquardt | FactoredLevenbergMarquardt:
        """The present value in the way of a block's own damping."""
        if isinstance(default, Factored):
            return FactoredLevenbergMarquardt(self, default.balanced)
        return self


@dataclass
class FactoredLevenbergMarquardt:
    """:class:`LevenbergMarquardt` split over two factors, as :class:`Factored` splits a number."""

    adapted: LevenbergMarquardt
    balanced: bool = True

    @property
    def value(self) -> float:
        """At present."""
        return self.adapted.for_factors

    def ridges(self, trace_A: Tensor, trace_G: Tensor, d: int, m: int) -> tuple[Tensor, Tensor]:
        """``(pi sqrt(value), sqrt(value) / pi)``."""
        return Factored(self.value, self.balanced).ridges(trace_A, trace_G, d, m)
