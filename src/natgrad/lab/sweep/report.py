"""The page of a sweep: best settings, train and test side by side, every trial."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from natgrad.lab.report.style import save_figure, styled
from natgrad.lab.report.text import (
    NOTHING,
    deviation,
    display_name,
    markdown_table,
    profile_text,
    settings_text,
    significant,
    with_spread,
    without_paths,
)
from natgrad.lab.sweep.figures import best_trial, interaction, sensitivity

__all__ = ["PAGE", "best_rows", "print_best", "write_sweep"]

PAGE = "sweep.md"
FIGURES = "figures"


def write_sweep(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the page and its figures, as PDF and PNG.

    Args:
        folder: the results folder.
        record: what ``sweep.json`` holds.

    Returns:
        The page.
    """
    sections = [_section(folder, search) for search in record["searches"]]
    page = folder / PAGE
    page.write_text("\n\n".join([_head(record), _best(record), *sections]) + "\n", encoding="utf-8")
    return page


def print_best(console: Console, record: Mapping[str, Any]) -> None:
    """Print the table of the best settings."""
    head, *rows = best_rows(record)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, name in enumerate(head):
        table.add_column(name, justify="left" if column < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def best_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of the best settings with their figures over seeds, its head first."""
    unit = record["metric"]["unit"]
    metric = record["metric"]["name"] + (f" [{unit}]" if unit else "")
    head = (
        "optimizer", "best settings", "trials", "validation loss, trial", "train loss", "test loss",
        f"train {metric}", f"test {metric}",
    )  # fmt: skip
    return [head, *(_best_row(record, search) for search in record["searches"])]


def _best_row(record: Mapping[str, Any], search: Mapping[str, Any]) -> tuple[str, ...]:
    name, best = search["optimizer"], best_trial(search)
    runs = [r for r in record["runs"] if r["optimizer"] == name and r["ended"] == "finished"]
    figures = (
        _spread(runs, key) for key in ("train_loss", "test_loss", "train_metric", "test_metric")
    )
    settings = settings_text(best["settings"]) if best else "no trial came to its end"
    loss = significant(best["validation_loss"], 4) if best else NOTHING
    return (display_name(name), settings, _counted(search), loss, *figures)


def _spread(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [run[key] for run in runs if key in run]
    if not values:
        return NOTHING
    places = 4 if key.endswith("_loss") else 2
    return with_spread(statistics.fmean(values), deviation(values), places)


def _counted(search: Mapping[str, Any]) -> str:
    ended = [trial["ended"] for trial in search["trials"]]
    parts = [f"{ended.count(kind)} {kind}" for kind in ("finished", "pruned", "diverged")]
    parts += [f"{search['given_up']} given up"] if search["given_up"] else []
    return ", ".join(part for part in parts if not part.startswith("0 "))


def _head(record: Mapping[str, Any]) -> str:
    rule = record["rule"]
    seeds = len(record["seeds"])
    return (
        f"# Sweep of {record['recipe']}\n\n    {without_paths(record['command'])}\n\n"
        f"{record['data']}. Profile {profile_text(record['profile'])}. Tried: {rule}. The "
        f"best settings are then trained for {record['budget']} from {seeds} "
        f"seed{'s' if seeds > 1 else ''}: the figures below are means and standard deviations "
        "over them at the end of training, training and test side "
        "by side. Curves: [report.html](report.html), figures/overview.pdf."
    )


def _best(record: Mapping[str, Any]) -> str:
    head, *rows = best_rows(record)
    return f"## Best settings\n\n{markdown_table(head, rows)}"


def _section(folder: Path, search: Mapping[str, Any]) -> str:
    name = search["optimizer"]
    figures = {f"sensitivity-{name}": sensitivity, f"interaction-{name}": interaction}
    shown = [_figure(folder, stem, draw, search) for stem, draw in figures.items()]
    keys = list(dict.fromkeys(key for trial in search["trials"] for key in trial["settings"]))
    head = ("", *keys, "validation loss", "ended", "seconds")
    ordered = sorted(search["trials"], key=_rank)
    rows = [_row(trial, keys, search["best"]) for trial in ordered]
    parts = [f"## {display_name(name)}", *filter(None, shown), markdown_table(head, rows)]
    return "\n\n".join(parts)


def _figure(folder: Path, stem: str, draw: Any, search: Mapping[str, Any]) -> str:
    with styled():
        figure = draw(search) if search["trials"] else None
    if figure is None:
        return ""
    save_figure(figure, folder / FIGURES / stem)
    return f"![{stem}]({FIGURES}/{stem}.png)"


def _rank(trial: Mapping[str, Any]) -> tuple[int, float, int]:
    order = ("finished", "pruned", "diverged").index(trial["ended"])
    loss = trial["validation_loss"]
    return order, float("inf") if loss is None else loss, trial["place"]


def _row(trial: Mapping[str, Any], keys: Sequence[str], best: int | None) -> tuple[str, ...]:
    settings = (trial["settings"].get(key) for key in keys)
    return (
        "best" if trial["place"] == best else "",
        *(
            f"{v:.4g}" if isinstance(v, float) else NOTHING if v is None else str(v)
            for v in settings
        ),
        significant(trial["validation_loss"], 4),
        trial["ended"],
        significant(trial["seconds"]),
    )
