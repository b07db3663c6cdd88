"""Where the axes of panels end, and which curves go beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from natgrad.lab.report.curves import Curve

__all__ = ["TIMES_THE_START", "Limits", "limits"]

LOG_FROM = 8.0
ERRORS_FROM = 1e3  #: a metric that falls over so many sizes is an error
TIMES_THE_START = 2.0  #: a loss above so many times the one at the start is cut off


@dataclass(frozen=True)
class Limits:
    """The ends of the axis of a loss or metric, and whether it is logarithmic.

    Attributes:
        low: The lower end.
        high: The upper end.
        log: Whether the axis is logarithmic.
        ceiling: Nothing above is seen, infinite where all is: curves leave the panel there.
    """

    low: float
    high: float
    log: bool = False
    ceiling: float = math.inf

    @property
    def drawable(self) -> float:
        """The greatest value to draw: what lies above it on a linear axis looks the same there.

        Canvases lose polygons whose corners are too far out.
        """
        return math.inf if self.log else 1e3 * self.ceiling


def limits(lines: Sequence[Curve], loss: bool, falls: bool, most: float = math.inf) -> Limits:
    """Return the limits of panels of one scale.

    What ought to fall is cut off at `TIMES_THE_START` times the greatest value that a curve
    begins with: a method that blows up does not press the others into one line.

    Args:
        lines: The curves of all of these panels, at least one.
        loss: Whether a loss is drawn, else a metric.
        falls: Whether less is better.
        most: The greatest value that there can be.
    """
    low = min(float(line.low.min()) for line in lines)
    high = max(float(line.high.max()) for line in lines)
    ceiling = _ceiling(lines, high) if falls else math.inf
    high = min(high, ceiling)
    if low > 0 and high / low > (LOG_FROM if loss else ERRORS_FROM):
        top = ceiling if math.isfinite(ceiling) else high * 1.15
        return Limits(low / 1.15, top, True, ceiling)
    if not loss:
        low, high, margin = _late(lines, ceiling)
        top = min(high + 2 * margin, most + margin / 2, ceiling)
        return Limits(low - margin, top, False, ceiling)
    margin = 0.05 * (high - low) or 1e-3 * max(1.0, math.fabs(high))
    top = ceiling if math.isfinite(ceiling) else high + margin
    return Limits(low - margin, top, False, ceiling)


def _ceiling(lines: Sequence[Curve], high: float) -> float:
    start = max(float(line.high[0]) for line in lines)
    above = start > 0 and high > TIMES_THE_START * start
    return TIMES_THE_START * start if above else math.inf


def _late(lines: Sequence[Curve], ceiling: float) -> tuple[float, float, float]:
    # the steep beginning would press all that matters into one line
    late = [line.x >= line.x[0] + 0.25 * (line.x[-1] - line.x[0]) for line in lines]
    low = min(float(line.low[keep].min()) for line, keep in zip(lines, late, strict=True))
    high = max(float(line.high[keep].max()) for line, keep in zip(lines, late, strict=True))
    if math.isfinite(ceiling):
        low, high = min(low, ceiling / TIMES_THE_START), min(high, ceiling)
    return low, high, 0.08 * (high - low) or 1e-3 * max(1.0, math.fabs(high))
