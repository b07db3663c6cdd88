"""Schedules of the learning rate, for every optimizer alike.

A schedule is a function of where a run stands: the share of its budget, its epoch and its curve.
All of these are in the checkpoint, so that a resumed run has the rates of one that was not stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from natgrad.lab.errors import UsageError, unknown

__all__ = ["Constant", "Linear", "Plateau", "Position", "Schedule", "Steps", "parse"]


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        used: share of its budget that is used up.
        epoch: passes over the training data so far.
        rows: the points of its curve so far.
        better: whether ``"higher"`` or ``"lower"`` figures of the metric are better.
    """

    used: float
    epoch: float
    rows: Sequence[Mapping[str, Any]] = ()
    better: Literal["higher", "lower"] = "higher"


class Schedule(Protocol):
    """What the learning rates of the start are multiplied by."""

    @property
    def about(self) -> str:
        """The schedule in words, for a report."""
        ...

    def factor(self, at: Position) -> float:
        """The factor of the next step."""
        ...


@dataclass(frozen=True)
class Constant:
    """1."""

    about = "constant"

    def factor(self, at: Position) -> float:
        """See :class:`Schedule`."""
        return 1.0


@dataclass(frozen=True)
class Linear:
    """``1 - used``: to zero at the end of the budget."""

    about = "falls linearly to zero over the budget"

    def factor(self, at: Position) -> float:
        """See :class:`Schedule`."""
        return max(0.0, 1 - at.used)


@dataclass(frozen=True)
class Steps:
    """``ratio^floor(epoch / every)``.

    Args:
        every: epochs between two drops.
        ratio: of the rates after and before a drop.

    Raises:
        ValueError: ``every`` not positive, or ``ratio`` not in (0, 1).
    """

    every: float
    ratio: float = 0.1

    def __post_init__(self) -> None:
        _check(self.every, self.ratio)

    @property
    def about(self) -> str:
        """See :class:`Schedule`."""
        return f"times {self.ratio:g} every {self.every:g} epochs"

    def factor(self, at: Position) -> float:
        """See :class:`Schedule`."""
        return float(self.ratio ** (at.epoch // self.every))


@dataclass(frozen=True)
class Plateau:
    """``ratio^k`` after the metric of the validation set stood still ``k`` times.

    It stands still when no point of the curve has been better than the best before for ``patience``
    epochs; after a drop so many epochs pass until the next.

    Args:
        patience: epochs without a better point.
        ratio: of the rates after and before a drop.

    Raises:
        ValueError: ``patience`` not positive, or ``ratio`` not in (0, 1).
    """

    patience: float
    ratio: float = 0.1

    def __post_init__(self) -> None:
        _check(self.patience, self.ratio)

    @property
    def about(self) -> str:
        """See :class:`Schedule`."""
        return (
            f"times {self.ratio:g} when the validation figure has not improved "
            f"for {self.patience:g} epochs"
        )

    def factor(self, at: Position) -> float:
        """See :class:`Schedule`."""
        return float(self.ratio ** self._drops(at))

    def _drops(self, at: Position) -> int:
        sign = 1 if at.better == "higher" else -1
        best, since, drops = float("-inf"), 0.0, 0
        for row in at.rows:
            figure = sign * row["validation_metric"]
            if figure > best:
                best, since = figure, row["epoch"]
            elif row["epoch"] - since >= self.patience:
                drops, since = drops + 1, row["epoch"]
        return drops


def _check(epochs: float, ratio: float) -> None:
    if not epochs > 0:
        raise ValueError(f"a schedule takes a positive number of epochs, got {epochs:g}")
    if not 0 < ratio < 1:
        raise ValueError(f"a schedule multiplies by a ratio between 0 and 1, got {ratio:g}")


_KINDS: dict[str, Any] = {
    "constant": Constant,
    "linear": Linear,
    "steps": Steps,
    "plateau": Plateau,
}
_FORMS = ("constant", "linear", "steps:EPOCHS[:RATIO]", "plateau:EPOCHS[:RATIO]")


def parse(text: str) -> Schedule:
    """The schedule that a recipe, a manifest or the command line names.

    >>> parse("steps:40:0.1")
    Steps(every=40.0, ratio=0.1)

    Raises:
        UsageError: no such schedule, or numbers that it does not take.
    """
    kind, *numbers = text.split(":")
    if kind not in _KINDS:
        raise unknown("schedule", text, _FORMS)
    try:
        made: Schedule = _KINDS[kind](*map(float, numbers))
    except (ValueError, TypeError) as error:
        forms = ", ".join(_FORMS)
        raise UsageError(f'schedule "{text}": {error}; schedules are {forms}') from error
    return made
