"""Profiles: one experiment in several sizes, never mixed with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natgrad.lab.recipe import Recipe

__all__ = ["CPU", "FULL", "PROFILES", "SMOKE", "Applied", "Profile"]

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
        ``"epochs: 5 instead of 70; seeds: 1 instead of 3"``; fields that have no short words (the
        study, settings, what the paper states) are left out.
    """
    parts = []
    for key, value in changes.items():
        before = getattr(full, key)
        if key not in SILENT and value != before:
            label = key.replace("architecture", "network").replace("_", " ")
            parts.append(f"{label}: {_difference(key, value, before)}")
    return "; ".join(parts)


def _difference(key: str, now: Any, before: Any) -> str:
    if key == "data" and now.name == before.name:
        return str(now.split).removeprefix(before.split).removeprefix("; of these ")
    if key == "optimizers" and set(now) < set(before):
        return f"{', '.join(now)} alone"
    return f"{_written(key, now)} instead of {_written(key, before)}"


def _written(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key == "data":
        return f"{value.name} ({value.split})"
    if key == "seeds":
        return str(len(value))
    if key == "grids":
        counts = {len(grid) for grid in value.values()}
        return f"{max(counts, default=0)} points"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
