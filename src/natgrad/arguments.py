"""Checks of what the user passes in: what was expected, what came."""

from __future__ import annotations

from natgrad.layers import LayerView, Uncovered, reasons

__all__ = ["check_choice", "check_coverage", "check_range"]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that quotes ``value`` unless it is one of the choices."""
    if value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_range(name: str, value: object, good: bool, expected: str) -> None:
    """Raise a ValueError that quotes ``value`` unless it is ``good``."""
    if not good:
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_coverage(
    views: list[LayerView], uncovered: list[Uncovered], strict: bool, some: bool = True
) -> None:
    """Raise if nothing is covered where ``some`` must be, or, when strict, if anything is not.

    Raises:
        ValueError: names the modules, each with its reason.
    """
    if some and not views:
        raise ValueError(
            f"natgrad found no layer to precondition in the model; {reasons(uncovered)}"
        )
    trained = [u for u in uncovered if u.trained]
    if strict and trained:
        listed = "; ".join(f"{u.name}: {u.reason}" for u in trained)
        raise ValueError(f"strict=True, but some parameters are not covered: {listed}")
