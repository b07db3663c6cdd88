"""The table of the paper's numbers beside ours, for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.report.beside import Beside, as_table, notes
from natgrad.lab.report.style import COLOURS, INK, literal, styled

if TYPE_CHECKING:
    from rich.table import Table

TITLE = "The paper's numbers beside ours"
MARKS = {
    "reproduced": "[green]reproduced[/green]",
    "not reproduced": "[red]not reproduced[/red]",
    "not comparable": "[yellow]not comparable[/yellow]",
    "not measured": "not measured",
}


def terminal(rows: Sequence[Beside]) -> Table:
    """Return the rows as a rich table.

    Below it stand the reasons, numbered, and what is the same in all rows.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    reasons = list(dict.fromkeys(row.why for row in rows if row.why))
    numbered = [f"[{i + 1}] {why}" for i, why in enumerate(reasons)]
    table = Table(
        title=TITLE,
        caption=escape("\n".join([*numbered, *notes(rows)])),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    headings, cells = as_table(rows)
    assert headings[-2:] == ("verdict", "why")
    for heading in headings[:-1]:
        numeric = heading in ("paper", "ours", "difference", "seeds")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row, shown in zip(rows, cells, strict=True):
        note = f" {escape(f'[{reasons.index(row.why) + 1}]')}" if row.why else ""
        table.add_row(*map(escape, shown[:-2]), MARKS[row.verdict] + note)
    return table


def figure(rows: Sequence[Beside]) -> Figure | None:
    """Draw the numbers that were measured, a panel for each unit; None if there are none.

    Paper: hollow diamonds; ours: filled circles; bars are one standard deviation to each side.
    """
    drawn = [row for row in rows if row.drawn is not None]
    if not drawn:
        return None
    units = list(dict.fromkeys(row.unit for row in drawn))
    groups = [[row for row in drawn if row.unit == unit] for unit in units]
    with styled():
        height = 0.75 + sum(0.55 + 0.34 * len(group) for group in groups)
        made = Figure(figsize=(6.6, height), layout="constrained")
        FigureCanvasAgg(made)
        shares = [0.55 + 0.34 * len(group) for group in groups]
        axes = made.subplots(len(groups), 1, squeeze=False, height_ratios=shares)[:, 0]
        for ax, unit, group in zip(axes, units, groups, strict=True):
            _panel(ax, unit, group)
        handles = [
            Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle=""),
            Line2D([], [], color=COLOURS[0], marker="o", linestyle=""),
        ]
        made.legend(handles, ["paper", "ours"], loc="outside upper center", ncols=2)
    return made


def _panel(ax: Axes, unit: str, group: Sequence[Beside]) -> None:
    for place, row in enumerate(group):
        assert row.drawn is not None
        theirs, their_sd, ours, our_sd = row.drawn
        ax.errorbar(
            theirs, place - 0.12, xerr=their_sd or 0.0, color=INK, marker="D",
            markerfacecolor="white", markersize=6, linewidth=1.0, capsize=2,
        )  # fmt: skip
        ax.errorbar(
            ours, place + 0.12, xerr=our_sd or 0.0, color=COLOURS[0], marker="o", linewidth=1.0,
            capsize=2,
        )  # fmt: skip
    ax.set_yticks(range(len(group)), [literal(f"{row.what}\n{row.where}") for row in group])
    ax.set_ylim(len(group) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(literal(unit))
