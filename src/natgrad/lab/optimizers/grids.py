"""Tuning grids that natgrad's optimizers have in common."""

from __future__ import annotations

from collections.abc import Iterable

from natgrad.lab.optimizers.task import Settings

__all__ = ["damped"]

METHODS = ("kfac", "ekfac", "tkfac", "tekfac")


def damped(dampings: Iterable[float], ratios: Iterable[float]) -> dict[str, list[Settings]]:
    """The same grid for each method: the best learning rate grows with the damping.

    Args:
        dampings: those tried.
        ratios: learning rates tried with each, relative to it.
    """
    points: list[Settings] = [
        {"lr": round(ratio * damping, 7), "damping": damping}
        for damping in dampings
        for ratio in ratios
    ]
    return dict.fromkeys(METHODS, points)
