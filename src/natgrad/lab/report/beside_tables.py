"""The table of the paper's numbers beside ours, for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.lab.report.beside import Beside, as_table, notes
from natgrad.lab.report.style import COLOURS, INK, literal, styled

if TYPE_CHECKING:
    from rich.table import Table

TITLE = "The paper's numbers beside ours"
COMPARED = ("reproduced", "not reproduced")
FAR = "#8b949e"
#: the paper's numbers, ours, and ours where they are not comparable
PAPERS: dict[str, Any] = {
    "color": INK, "marker": "D", "markerfacecolor": "white", "markersize": 6
}  # fmt: skip
OURS: dict[str, Any] = {"color": COLOURS[0], "marker": "o"}
APART: dict[str, Any] = {"color": FAR, "marker": "o", "markerfacecolor": "white"}
MARKS = {
    "reproduced": "[green]reproduced[/green]",
    "not reproduced": "[red]not reproduced[/red]",
    "not comparable": "[yellow]not comparable[/yellow]",
    "not measured": "not measured",
    "holds": "[green]holds[/green]",
    "does not hold": "[red]does not hold[/red]",
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
    headings, blocks = as_table(rows)
    assert headings[-2:] == ("verdict", "why")
    for heading in headings[:-1]:
        numeric = heading in ("paper", "ours", "difference", "seeds")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for block in blocks:
        if block.title:
            table.add_section()
            table.add_row(f"[italic]{escape(block.title)}[/italic]")
        for row, shown in zip(block.rows, block.cells, strict=True):
            note = f" {escape(f'[{reasons.index(row.why) + 1}]')}" if row.why else ""
            table.add_row(*map(escape, shown[:-2]), MARKS[row.verdict] + note)
    return table


def figure(rows: Sequence[Beside], profile: str = "") -> Figure | None:
    """Draw the numbers that were measured, a panel for each unit; None if there are none.

    Paper: hollow diamonds; ours: filled circles, hollow and grey where the two are not
    comparable; bars are one standard deviation to each side.

    Args:
        rows: What the paper states, beside ours.
        profile: The name of ours.
    """
    drawn = [row for row in rows if row.drawn is not None]
    if not drawn:
        return None
    units = list(dict.fromkeys(row.unit for row in drawn))
    groups = [[row for row in drawn if row.unit == unit] for unit in units]
    shares = [_height(group) for group in groups]
    with styled():
        made = Figure(figsize=(6.6, 0.55 + sum(shares)), layout="constrained")
        FigureCanvasAgg(made)
        axes = made.subplots(len(groups), 1, squeeze=False, height_ratios=shares)[:, 0]
        for ax, unit, group in zip(axes, units, groups, strict=True):
            _panel(ax, unit, group)
        _legend(made, drawn, f", {profile} profile" if profile else "")
    return made


def _legend(made: Figure, rows: Sequence[Beside], profile: str) -> None:
    entries = {"paper": Line2D([], [], **PAPERS, linestyle="")}
    judged = {row.verdict in COMPARED for row in rows}
    if True in judged:
        entries[f"ours{profile}"] = Line2D([], [], **OURS, linestyle="")
    if False in judged:
        label = f"ours{profile}: not comparable with the paper's"
        entries[label] = Line2D([], [], **APART, linestyle="")
    made.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=len(entries)
    )


def _panel(ax: Axes, unit: str, group: Sequence[Beside]) -> None:
    for place, row in enumerate(group):
        assert row.drawn is not None
        theirs, their_sd, ours, our_sd = row.drawn
        ours_look = OURS if row.verdict in COMPARED else APART
        for look, value, sd, shift in (
            (PAPERS, theirs, their_sd, -0.12),
            (ours_look, ours, our_sd, 0.12),
        ):
            ax.errorbar(value, place + shift, xerr=sd or 0.0, **look, linewidth=1.0, capsize=2)
    shared = _shared(group)
    ax.set_title(literal(shared), loc="left")
    labels = [row.what if shared else f"{row.what}\n{_origin(row)}" for row in group]
    ax.set_yticks(range(len(group)), list(map(literal, labels)))
    ax.set_ylim(len(group) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(literal(unit))


def _origin(row: Beside) -> str:
    """Where in the paper, on which data; the true name of ours where it is another."""
    theirs, _, ours = row.data.partition("; ours: ")
    named = row.where if theirs in row.where else f"{row.where}, {theirs}"
    return f"{named}\nours: {ours}" if ours else named


def _shared(group: Sequence[Beside]) -> str:
    """What all rows have in common, said once above them; empty where they have nothing."""
    origins = {_origin(row) for row in group}
    return origins.pop() if len(origins) == 1 and len(group) > 1 else ""


def _height(group: Sequence[Beside]) -> float:
    """Of a panel, in inches: labels of one line, or with the origin below of two or three."""
    shared = _shared(group)
    if shared:
        return 0.75 + 0.15 * shared.count("\n") + 0.3 * len(group)
    lines = 2 + max(_origin(row).count("\n") for row in group)
    return 0.55 + (0.12 + 0.15 * lines) * len(group)
