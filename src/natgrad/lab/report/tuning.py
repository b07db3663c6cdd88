"""The tuning grid of an optimizer, with what every point of it reached on the validation set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from natgrad.lab.report.read import Results, Run
from natgrad.lab.report.text import NOTHING, display_name, plain_value, significant


@dataclass(frozen=True)
class GridPoint:
    """One point of a grid.

    Attributes:
        cells: The values of the settings that the grid varies, as text.
        loss: The validation loss it was judged by, as text, or how it ended.
        chosen: Whether the runs that count used it.
        shade: 1 for the lowest loss of the grid, 0 for the highest and for those without one.
    """

    cells: tuple[str, ...]
    loss: str
    chosen: bool
    shade: float


@dataclass(frozen=True)
class Grid:
    """The grid of one optimizer.

    Attributes:
        name: The optimizer's name as the field writes it.
        keys: The settings that the grid varies.
        points: Its points, in the order of the settings.
        constant: The settings that all points share, as text.
        edges: What lies at the end of the grid, as sentences: a wider one might do better.
    """

    name: str
    keys: tuple[str, ...]
    points: tuple[GridPoint, ...]
    constant: Mapping[str, str]
    edges: tuple[str, ...]


def grids(results: Results) -> list[Grid]:
    """Return the grid of every optimizer that has one."""
    stated = results.part("grids")
    made = []
    for optimizer in results.optimizers:
        runs = results.tuning.get(optimizer, {})
        entries = stated.get(optimizer)
        settings = {i: dict(point) for i, point in enumerate(entries or [])}
        settings = settings or {i: dict(run.settings) for i, run in sorted(runs.items())}
        if settings:
            chosen = results.part("tuned").get(optimizer)
            scores = results.part("tuning_losses").get(optimizer) or []
            made.append(_grid(optimizer, settings, runs, chosen, scores))
    return made


def tried(grid: Grid) -> str:
    """Say what a grid is made of.

    Returns:
        ``"lr 0.01, 0.03, 0.1"``; of several settings the number of points, too, as not every
        combination need be among them.
    """
    columns = zip(*(point.cells for point in grid.points), strict=True)
    axes = [
        f"{key} {', '.join(sorted(set(cells), key=_rank_of_text))}"
        for key, cells in zip(grid.keys, columns, strict=True)
    ]
    count = f"{len(grid.points)} points of " if len(axes) > 1 else ""
    return count + "; ".join(axes)


def scored(grid: Grid) -> str:
    """Say what every point of a grid reached, as Markdown.

    Returns:
        ``"lr 0.01: 0.2448; **lr 0.05: 0.15**; lr 0.3: diverged"``.
    """
    words = [
        f"{', '.join(f'{k} {cell}' for k, cell in zip(grid.keys, point.cells, strict=True))}: "
        f"{point.loss}"
        for point in grid.points
    ]
    return "; ".join(
        f"**{each}**" if point.chosen else each
        for each, point in zip(words, grid.points, strict=True)
    )


def edges(
    settings: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], keys: Sequence[str]
) -> list[str]:
    """Say which of the chosen settings lie at an end of what was tried; of two values both do.

    Args:
        settings: The points of the grid.
        chosen: The best of them.
        keys: The settings that the grid varies: one that it holds was not tuned.
    """
    sentences = []
    for key in keys:
        values = sorted({float(s[key]) for s in settings if _is_number(s.get(key))})
        value = chosen.get(key)
        if len(values) < 2 or value not in (values[0], values[-1]):
            continue
        end = "lower" if value == values[0] else "upper"
        place = "one of the two values tried" if len(values) == 2 else f"the {end} end of the grid"
        wider = "more of them" if len(values) == 2 else "a wider one"
        sentences.append(f"{key} {plain_value(value)} is {place}; {wider} might do better.")
    return sentences


def _grid(
    optimizer: str,
    settings: Mapping[int, dict[str, Any]],
    runs: Mapping[int, Run],
    chosen: Any,
    scores: Sequence[float | None],
) -> Grid:
    everything = list(settings.values())
    names = list(dict.fromkeys(key for point in everything for key in point))
    keys = tuple(name for name in names if len({str(p.get(name)) for p in everything}) > 1)
    losses = {i: _loss(runs.get(i), scores[i] if i < len(scores) else None) for i in settings}
    order = sorted(settings, key=lambda i: [_rank(settings[i].get(key)) for key in keys])
    chosen = chosen if isinstance(chosen, Mapping) else {}
    points = tuple(
        GridPoint(
            cells=tuple(plain_value(settings[i].get(key)) for key in keys),
            loss=_loss_text(losses[i], runs.get(i)),
            chosen=bool(chosen) and all(chosen.get(k) == v for k, v in settings[i].items()),
            shade=_shade(losses[i], list(losses.values())),
        )
        for i in order
    )
    constant = {n: plain_value(everything[0].get(n)) for n in names if n not in keys}
    notes = tuple(edges(everything, chosen, keys))
    return Grid(display_name(optimizer), keys, points, constant, notes)


def _loss(run: Run | None, score: float | None) -> float:
    """What the point was judged by: the score that was recorded, else the final loss."""
    if run is None or run.status == "diverged":
        return math.nan
    return run.final("validation_loss") if score is None else score


def _loss_text(loss: float, run: Run | None) -> str:
    if run is None or not run.rows:
        return NOTHING if run is None or run.status != "diverged" else "diverged"
    if run.status in ("running", "interrupted"):
        return f"{significant(loss, 4)} (not finished)"
    return significant(loss, 4) if math.isfinite(loss) else "diverged"


def _shade(loss: float, losses: Sequence[float]) -> float:
    # by rank: one setting that all but diverged would leave the others alike
    known = sorted({value for value in losses if math.isfinite(value)})
    if not math.isfinite(loss) or len(known) < 2:
        return 0.0
    return round(1 - known.index(loss) / (len(known) - 1), 3)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rank(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))


def _rank_of_text(cell: str) -> tuple[int, float, str]:
    try:
        return _rank(float(cell))
    except ValueError:
        return _rank(cell)
