"""The report of several experiments under one name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natgrad.lab.report import single
from natgrad.lab.report.beside import Beside, claimed
from natgrad.lab.report.ours import Ours, ours_of
from natgrad.lab.report.read import ResultsError
from natgrad.lab.report.studies import terminal
from natgrad.lab.report.text import display_name, with_spread
from natgrad.lab.tables import Table

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class WrittenSuite:
    """What was written of several experiments.

    Attributes:
        manifest: Of the suite.
        variants: Those that have results, by name.
        table: Where training ended: optimizers by variants.
        rows: The paper's numbers and claims, of the variants and of the suite.
        page: The page on top.
    """

    manifest: Mapping[str, Any]
    variants: Mapping[str, single.Written]
    table: Table
    rows: list[Beside]
    page: Path


def is_suite(folder: Path) -> bool:
    """Whether a results folder is one of several experiments."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "suite" in manifest


def write(folder: Path) -> WrittenSuite:
    """Write the page of every variant, and the one on top.

    Raises:
        ResultsError: No variant has results yet.
    """
    from natgrad.lab.report.suite_page import suite_page

    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    variants: dict[str, single.Written] = {}
    for entry in manifest["variants"]:
        name = str(entry["recipe"]["name"]).partition("/")[2]
        try:
            variants[name] = single.write(folder / name)
        except ResultsError:  # not begun, or not past its tuning
            continue
    if not variants:
        raise ResultsError(f"{folder} holds no evaluation of any variant yet")
    rows = [row for written in variants.values() for row in written.rows]
    rows += [_claim(claim, variants) for claim in manifest["suite"].get("paper", [])]
    single.draw_paper(rows, folder / "figures")
    path = folder / "report.html"
    made = WrittenSuite(manifest, variants, endings(variants), rows, path)
    path.write_text(suite_page(made), encoding="utf-8")
    return made


def show(written: WrittenSuite, console: Console, paper: bool) -> None:
    """Print where training ended in every variant, and the paper's numbers."""
    console.print(terminal(written.table))
    for name, variant in written.variants.items():
        for table in variant.results.tables.values():
            console.print(f"\n{name}", highlight=False)
            console.print(terminal(table))
    single.show_paper(written.rows, console, paper)
    console.print(f"\nreport: {written.page}", soft_wrap=True, highlight=False, markup=False)


def endings(variants: Mapping[str, single.Written]) -> Table:
    """Return the final metric of every optimizer in every variant, train and test side by side."""
    names = dict.fromkeys(
        entry.optimizer for each in variants.values() for entry in each.summary.entries
    )
    columns, found = ["optimizer"], [[display_name(name)] for name in names]
    for variant, each in variants.items():
        metric = each.summary.metric
        places = 2 if metric.unit == "%" else 4
        unit = f" [{metric.unit}]" if metric.unit else ""
        for part in ("train", "test"):
            columns.append(f"{variant}: {part} {metric.name}{unit}")
            for row, name in zip(found, names, strict=True):
                row.append(_ending(each, name, f"{part}_metric", places))
    note = "The last evaluation, mean ± sample standard deviation over seeds."
    return Table("Where training ended", columns, found, note)


def _ending(written: single.Written, optimizer: str, quantity: str, places: int) -> str:
    entry = written.summary.entry(optimizer)
    spread = entry.final.get(quantity) if entry else None  # type: ignore[call-overload]
    if spread is None:
        return "diverged" if entry and entry.diverged else "\N{EN DASH}"
    return with_spread(spread.mean, spread.sd, places)


def _claim(claim: Mapping[str, Any], variants: Mapping[str, single.Written]) -> Beside:
    first = next(iter(variants.values())).results
    return claimed(
        claim,
        _ours(claim["better"], variants),
        _ours(claim["worse"], variants),
        data=str(first.part("data").get("name")),
        profile=first.part("profile"),
    )


def _ours(reading: Mapping[str, Any], variants: Mapping[str, single.Written]) -> Ours | None:
    """A reading that names the variant before its optimizer or table, with a slash between."""
    key = "table" if "table" in reading else "optimizer"
    variant, _, rest = str(reading[key]).partition("/")
    written = variants.get(variant)
    if written is None:
        return None
    return ours_of({**reading, key: rest}, written.results, written.summary)
