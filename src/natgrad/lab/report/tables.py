"""The tables of a summary: for the terminal, for Markdown, as plain values, and for the page.

All are made from the same columns, so that they cannot disagree.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from natgrad.lab.report.text import NOTHING, decimals, markdown_row, significant, with_spread

if TYPE_CHECKING:
    from rich.table import Table

    from natgrad.lab.report.read import Quantity
    from natgrad.lab.report.summary import OptimizerSummary, Spread, Summary


@dataclass(frozen=True)
class Column:
    """One column: its heading, its cells, and which of them are the best."""

    heading: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


def final_columns(summary: Summary) -> list[Column]:
    """Return the final losses and metrics, train, validation and test side by side."""
    metric = summary.metric
    unit = f" [{metric.unit}]" if metric.unit else ""
    columns = [_final(summary, f"{part}_loss", f"{part} loss") for part in _PARTS]
    columns += [
        _final(summary, f"{part}_metric", f"{part} {metric.name}{unit}", metric.better == "higher")
        for part in _PARTS
    ]
    return columns


def cost_columns(summary: Summary) -> list[Column]:
    """Return what it took to reach the target, and what a step costs."""
    columns = [
        Column("reached", tuple(_reached(entry) for entry in summary.entries)),
        _least(summary, "epochs", lambda e: e.to_target["epochs"]),
        _least(summary, "updates", lambda e: e.to_target["updates"]),
        _least(summary, "seconds", lambda e: e.to_target["seconds"]),
    ]
    step = _least(summary, "ms per update", lambda e: e.ms_per_update)
    if not any(entry.times_reference for entry in summary.entries):
        return [*columns, step]
    return [
        *columns,
        Column("seconds vs SGD", _ratios(summary, "seconds")),
        step,
        Column("step vs SGD", _ratios(summary, "ms_per_update")),
    ]


def notes(summary: Summary) -> list[str]:
    """Return the sentences that say how the figures were counted."""
    lines = []
    if summary.target is not None:
        lines.append(
            f"Target: {summary.target.name}, {significant(summary.target.loss, 4)} (median over "
            "seeds)."
            if summary.target.optimizer == "sgd"
            else f"Target: {summary.target.name}, {significant(summary.target.loss, 4)}."
        )
    lines.append(
        "To target: where the running minimum of the validation loss first crosses it, linear "
        "between evaluations; median over seeds, a seed that misses the target counted as "
        "infinite."
    )
    lines.append("Final: the last evaluation, mean ± sample standard deviation over seeds.")
    lines.append(
        "Seconds: training steps and what the optimizer prepares before, without evaluation."
    )
    lines += [line for entry in summary.entries if (line := _shortfall(entry))]
    return lines


def terminal(summary: Summary) -> Table:
    """Return the main columns as a rich table, made for 80 characters."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=summary.title,
        caption="\n".join(notes(summary)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    columns = _main_columns(summary)
    table.add_column("optimizer", no_wrap=True)
    for column in columns:
        heading = "\n".join(textwrap.wrap(column.heading, 12))
        table.add_column(_unmarked(heading), justify="right", no_wrap=True)
    for i, entry in enumerate(summary.entries):
        cells = [f"[bold]{c.cells[i]}[/bold]" if i in c.best else c.cells[i] for c in columns]
        table.add_row(_unmarked(entry.name), *cells)
    return table


def markdown(summary: Summary) -> str:
    """Return all columns as Markdown tables, with the notes below."""
    parts = [
        _markdown_table(summary, cost_columns(summary)),
        _markdown_table(summary, final_columns(summary)),
        "\n".join(f"- {line}" for line in notes(summary)),
    ]
    for timeline in summary.timelines:
        parts.append(_markdown_table(summary, timeline.columns()))
        parts.append("\n".join(f"- {line}" for line in timeline.notes()))
    return "\n\n".join(parts) + "\n"


def plain(summary: Summary, entry: OptimizerSummary) -> dict[str, Any]:
    """Return one optimizer's figures as plain values, None where there is nothing."""
    final = {
        quantity: {"mean": spread.mean, "sd": spread.sd, "n": spread.n}
        for quantity, spread in entry.final.items()
    }
    return {
        "optimizer": entry.optimizer,
        "finished": entry.finished,
        "diverged": entry.diverged,
        "unfinished": entry.unfinished,
        "final": final,
        "target_validation_loss": summary.target.loss if summary.target else None,
        "reached": entry.reached,
        "to_target": dict(entry.to_target),
        "ms_per_update": entry.ms_per_update,
        "times_sgd": dict(entry.times_reference),
    }


_PARTS = ("train", "validation", "test")


def _main_columns(summary: Summary) -> list[Column]:
    final, cost = final_columns(summary), cost_columns(summary)
    wanted = ("reached", "updates", "seconds")
    return [final[3], final[5], final[1], *[column for column in cost if column.heading in wanted]]


def _final(summary: Summary, quantity: str, heading: str, highest: bool = False) -> Column:
    key: Quantity = quantity  # type: ignore[assignment]
    spreads = [entry.final.get(key) for entry in summary.entries]
    means = [spread.mean if spread else None for spread in spreads]
    places = 2 if quantity.endswith("_metric") and summary.metric.unit == "%" else decimals(means)
    cells = tuple(_spread_text(spread, places) for spread in spreads)
    return Column(heading, cells, _best(means, highest))


def _least(
    summary: Summary, heading: str, value: Callable[[OptimizerSummary], float | None]
) -> Column:
    values = [value(entry) for entry in summary.entries]
    whole = heading == "updates"
    cells = tuple(
        f"{v:.0f}" if whole and v is not None and v >= 100 else significant(v) for v in values
    )
    return Column(heading, cells, _best(values))


def _best(values: Sequence[float | None], highest: bool = False) -> frozenset[int]:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return frozenset()
    best = max(known) if highest else min(known)
    return frozenset(i for i, value in enumerate(values) if value == best)


def _ratios(summary: Summary, key: str) -> tuple[str, ...]:
    return tuple(
        NOTHING if (ratio := entry.times_reference.get(key)) is None else f"{ratio:.2f}"
        for entry in summary.entries
    )


def _reached(entry: OptimizerSummary) -> str:
    return f"{entry.reached} of {entry.counted}" if entry.counted else NOTHING


def _spread_text(spread: Spread | None, places: int) -> str:
    if spread is None:
        return NOTHING
    return with_spread(spread.mean, spread.sd, places)


def _shortfall(entry: OptimizerSummary) -> str:
    total = entry.counted + entry.unfinished
    parts = [f"{entry.diverged} diverged"] if entry.diverged else []
    parts += [f"{entry.unfinished} not finished"] if entry.unfinished else []
    if not parts:
        return ""
    return f"{entry.name}: of {total} {'run' if total == 1 else 'runs'} {', '.join(parts)}."


def _markdown_table(summary: Summary, columns: Sequence[Column]) -> str:
    head = ["optimizer", *[column.heading for column in columns]]
    lines = [markdown_row(head), "|---|" + "---:|" * len(columns)]
    for i, entry in enumerate(summary.entries):
        cells = [f"**{c.cells[i]}**" if i in c.best else c.cells[i] for c in columns]
        lines.append(markdown_row([entry.name, *cells]))
    return "\n".join(lines)


def _unmarked(text: str) -> str:
    from rich.markup import escape

    return escape(text)
