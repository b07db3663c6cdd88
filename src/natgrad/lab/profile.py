"""Profiles: one experiment in several sizes, never mixed with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from natgrad.lab.schedules import parse

if TYPE_CHECKING:
    from natgrad.lab.recipe import Recipe

__all__ = ["CPU", "FULL", "PROFILES", "SMOKE", "Applied", "Profile", "held", "whose"]

Grids = Mapping[str, Sequence[Mapping[str, Any]]]

SMOKE, CPU, FULL = "smoke", "cpu", "full"
#: ``full`` is the recipe as it is written: the paper's own settings
PROFILES = (SMOKE, CPU, FULL)

SILENT = {
    "profile", "profiles", "network", "settings", "spaces", "illustrate", "study", "threads",
    "paper",
}  # fmt: skip
NEEDS_WORDS = {"network": "architecture"}


@dataclass(frozen=True)
class Profile:
    """What a smaller size of an experiment changes.

    Attributes:
        changes: fields of the recipe and their values here; a ``network`` comes with its
            ``architecture`` in words. Fewer examples are a change of ``data``
            (:meth:`natgrad.lab.data.DataSet.first`).
        comparable: whether the paper's numbers still mean the same; only where the changes leave
            alone what the paper states.

    Raises:
        ValueError: a network without its words.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    comparable: bool = False

    def __post_init__(self) -> None:
        for what, words in NEEDS_WORDS.items():
            if what in self.changes and words not in self.changes:
                raise ValueError(f"a profile that changes {what} must say so in {words}")


@dataclass(frozen=True)
class Applied:
    """The profile that a recipe is in.

    Attributes:
        name: ``"smoke"``, ``"cpu"`` or ``"full"``.
        differs: from the full one, in words; empty if it does not.
        comparable: whether the paper's numbers still mean the same.
    """

    name: str = FULL
    differs: str = ""
    comparable: bool = True


def described(full: Recipe, changes: Mapping[str, Any]) -> str:
    """What changes make of a recipe, in words.

    Returns:
        ``"epochs: 5 instead of 70; grids: 4 points instead of 9, every 100 instead of 1000
        (prong)"``; fields that have no short words (the
        study, settings, what the paper states) are left out.
    """
    parts = []
    for key, value in changes.items():
        if key not in SILENT and value != getattr(full, key):
            label = key.replace("architecture", "network").replace("_", " ")
            parts.append(f"{label}: {_difference(key, value, full)}")
    return "; ".join(parts)


def held(now: Grids, before: Grids) -> dict[str, list[str]]:
    """What grids hold at one value that others vary, or hold at another one.

    >>> held({"prong": [{"lr": 0.1, "every": 50}, {"lr": 1.0, "every": 50}]},
    ...      {"prong": [{"lr": 0.1, "every": 1000}, {"lr": 1.0, "every": 1000}]})
    {'every 50 instead of 1000': ['prong']}

    Returns:
        The optimizers that it is so for, by the words for it.
    """
    found: dict[str, list[str]] = {}
    for name in now:
        for words in _held(now[name], before.get(name, ())):
            found.setdefault(words, []).append(name)
    return found


def whose(
    values: Mapping[str, Sequence[str]],
    everyone: Sequence[str] = (),
    write: Callable[[str], str] = str,
) -> list[str]:
    """What `held` found, with the optimizers behind it: once for all values that are of the same.

    Args:
        values: as ``held`` returns them.
        everyone: optimizers that are left out where it is so for all of them.
        write: an optimizer's name.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for value, names in values.items():
        groups.setdefault(tuple(names), []).append(value)
    return [
        ", ".join(found)
        + ("" if set(names) == set(everyone) else f" ({'; '.join(map(write, names))})")
        for names, found in groups.items()
    ]


def _held(now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[str]:
    mine, theirs = _values(now), _values(before)
    return [
        f"{key} {values[0]} instead of {' or '.join(theirs[key])}"
        for key, values in mine.items()
        if len(values) == 1
        and theirs.get(key, values) != values
        # of a single point every value is held: that of a rate says nothing
        and (len(now) > 1 or len(theirs[key]) == 1)
    ]


def _values(grid: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The values of each setting over a grid, each once, as text."""
    keys = dict.fromkeys(key for point in grid for key in point)
    return {key: list(dict.fromkeys(_plain(p.get(key)) for p in grid)) for key in keys}


def _difference(key: str, now: Any, full: Recipe) -> str:
    before = getattr(full, key)
    if key == "data" and now.name == before.name:
        return str(now.split).removeprefix(before.split).removeprefix("; of these ").lstrip("; ")
    if key == "optimizers" and set(now) < set(before):
        return f"{', '.join(now)} alone"
    if key == "grids":
        return _of_grids(now, before)
    if key == "evaluations" and not before:
        return f"{now} over the run instead of {full.evaluations_per_epoch} an epoch"
    return f"{_written(key, now)} instead of {_written(key, before)}"


def _of_grids(now: Grids, before: Grids) -> str:
    points, others = (max(map(len, grids.values()), default=0) for grids in (now, before))
    count = f"{points} point" + ("" if points == 1 else "s")
    words = [count if points == others else f"{count} instead of {others}"]
    return ", ".join([*words, *whose(held(now, before), list(now))])


def _written(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key == "data":
        return f"{value.name} ({value.split})"
    if key == "seeds":
        return str(len(value))
    if key == "schedule":
        return parse(value).about
    return ", ".join(map(_plain, value)) if isinstance(value, (tuple, list)) else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
