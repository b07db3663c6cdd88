"""Search spaces: what a sweep may try for each setting of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from natgrad.lab.errors import UsageError
from natgrad.lab.optimizers import Setting, complete, parse

__all__ = ["Choice", "Range", "Space", "checked", "read_space", "space_from", "written_space"]


@dataclass(frozen=True)
class Range:
    """Every number from ``low`` to ``high``.

    Attributes:
        low: the least.
        high: the greatest.
        log: drawn evenly in the logarithm; else in the number.
        whole: whole numbers only.
    """

    low: float
    high: float
    log: bool = True
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"a range goes up, got {self.low:g}..{self.high:g}")
        if self.log and self.low <= 0:
            raise UsageError(f"a range in the logarithm is positive, got {self.low:g}..")

    def holds(self, value: Setting) -> bool:
        """Whether a value lies within."""
        return not isinstance(value, str) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Setting, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UsageError("a choice needs values")

    def holds(self, value: Setting) -> bool:
        """Whether a value is one of them."""
        return value in self.values


Space: TypeAlias = Mapping[str, Range | Choice]


def checked(optimizer: str, space: Space) -> Space:
    """The space, if the optimizer has all its settings.

    Raises:
        UsageError: one that it does not have.
    """
    complete(optimizer, dict.fromkeys(space, 0.0))
    return space


def space_from(optimizer: str, words: Iterable[str]) -> Space:
    """A space from what the command line takes.

    >>> space_from("sgd", ["lr=0.001..1", "momentum=0,0.9"])
    {'lr': Range(low=0.001, high=1.0, log=True, whole=False), 'momentum': Choice(values=(0.0, 0.9))}

    Args:
        optimizer: whose settings they are.
        words: ``KEY=LOW..HIGH``, even in the logarithm where LOW is positive, or ``KEY=A,B,C``.

    Raises:
        UsageError: neither of these, no such setting, or a value of another type.
    """
    space: dict[str, Range | Choice] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not text:
            raise UsageError(f'--vary takes KEY=LOW..HIGH or KEY=A,B,C, got "{word}"')
        low, dots, high = text.partition("..")
        if not dots:
            values = tuple(_value(optimizer, key, each) for each in text.split(","))
            space[key] = Choice(values)
            continue
        ends = [_value(optimizer, key, each) for each in (low, high)]
        if any(isinstance(end, (str, bool)) for end in ends):
            raise UsageError(
                f'--vary: {key} of {optimizer} is no number; give values, not "{text}"'
            )
        whole = all(isinstance(end, int) for end in ends)
        space[key] = Range(float(ends[0]), float(ends[1]), float(ends[0]) > 0, whole)
    return space


def written_space(space: Space) -> dict[str, Any]:
    """A space as plain values, for a manifest."""
    return {
        key: {"values": list(kind.values)}
        if isinstance(kind, Choice)
        else {"low": kind.low, "high": kind.high, "log": kind.log, "whole": kind.whole}
        for key, kind in space.items()
    }


def read_space(written: Mapping[str, Any]) -> Space:
    """The inverse."""
    return {
        key: Choice(tuple(kind["values"])) if "values" in kind else Range(**kind)
        for key, kind in written.items()
    }


def _value(optimizer: str, key: str, text: str) -> Setting:
    return parse(optimizer, [f"{key}={text}"])[key]
