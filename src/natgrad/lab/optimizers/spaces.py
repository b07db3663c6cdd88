"""Search spaces that recipes have in common."""

from __future__ import annotations

from natgrad.lab.space import Range, Space

__all__ = ["rates", "ridged"]


def rates(low: float, high: float) -> Space:
    """A learning rate, drawn evenly in the logarithm."""
    return {"lr": Range(low, high)}


def ridged(low: float, high: float, eps: Range) -> Space:
    """A learning rate and the ridge of a whitened network: the largest rate grows with it."""
    return {**rates(low, high), "eps": eps}
