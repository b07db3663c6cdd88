"""The report of several experiments under one name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natgrad.lab.errors import UsageError
from natgrad.lab.paper import record
from natgrad.lab.recipe import find
from natgrad.lab.report import single
from natgrad.lab.report.beside import Beside, claimed
from natgrad.lab.report.ours import Ours, ours_of
from natgrad.lab.report.read import Results, ResultsError
from natgrad.lab.report.studies import terminal
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import display_name, with_spread
from natgrad.lab.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("train", "test")


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
    rows += [_claim(claim, variants) for claim in _stated(manifest["suite"])]
    single.draw_paper(rows, [each.results for each in variants.values()], folder / "figures")
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
    """Return the final metric of every optimizer in every variant, train and test side by side.

    Variants stand side by side where they have the same optimizers, else below each other.
    """
    note = "The last evaluation, mean ± sample standard deviation over seeds."
    names = [[entry.optimizer for entry in each.summary.entries] for each in variants.values()]
    if all(name == names[0] for name in names):
        columns, rows = _abreast(variants, names[0])
    else:
        columns, rows = _stacked(variants)
    return Table("Where training ended", columns, rows, note)


def _abreast(
    variants: Mapping[str, single.Written], optimizers: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    columns, rows = ["optimizer"], [[display_name(name)] for name in optimizers]
    for variant, each in variants.items():
        columns += [f"{variant}: {part} {_metric(each)}" for part in PARTS]
        for row, name in zip(rows, optimizers, strict=True):
            row += [_ending(each, name, part) for part in PARTS]
    return columns, rows


def _stacked(variants: Mapping[str, single.Written]) -> tuple[list[str], list[list[str]]]:
    metrics = list(dict.fromkeys(_metric(each) for each in variants.values()))
    one = len(metrics) == 1  # else each row names its own
    rows = [
        [f"{variant}: {display_name(entry.optimizer)}"]
        + ([] if one else [_metric(each)])
        + [_ending(each, entry.optimizer, part) for part in PARTS]
        for variant, each in variants.items()
        for entry in each.summary.entries
    ]
    headings = [f"{part} {metrics[0]}" for part in PARTS] if one else ["metric", *PARTS]
    return ["variant: optimizer", *headings], rows


def _metric(written: single.Written) -> str:
    metric = written.summary.metric
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name


def _ending(written: single.Written, optimizer: str, part: str) -> str:
    entry = written.summary.entry(optimizer)
    spread = entry.final.get(f"{part}_metric") if entry else None  # type: ignore[call-overload]
    places = 2 if written.summary.metric.unit == "%" else 4
    if spread is None:
        return "diverged" if entry and entry.diverged else "\N{EN DASH}"
    return with_spread(spread.mean, spread.sd, places)


def _stated(suite: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What the paper states of several variants, as `beside.stated` has it of one."""
    try:
        today = find(str(suite["name"])).paper
    except UsageError:
        then: list[Mapping[str, Any]] = suite.get("paper", [])
        return then
    return [record(each) for each in today]


def _claim(claim: Mapping[str, Any], variants: Mapping[str, single.Written]) -> Beside:
    about = variants.get(_variant(claim["better"])) or next(iter(variants.values()))
    first = about.results
    return claimed(
        claim,
        _ours(claim["better"], variants),
        _ours(claim["worse"], variants),
        data=str(first.part("data").get("name")),
        profile=first.part("profile"),
    )


def _ours(reading: Mapping[str, Any], variants: Mapping[str, single.Written]) -> Ours | None:
    """A reading that names the variant before its optimizer or table, with a slash between."""
    key = _key(reading)
    if key not in reading:  # a bound is of no variant
        return ours_of(reading, *_any(variants))
    rest = str(reading[key]).partition("/")[2]
    written = variants.get(_variant(reading))
    if written is None:
        return None
    return ours_of({**reading, key: rest}, written.results, written.summary)


def _key(reading: Mapping[str, Any]) -> str:
    return "table" if "table" in reading else "optimizer"


def _variant(reading: Mapping[str, Any]) -> str:
    return str(reading.get(_key(reading), "")).partition("/")[0]


def _any(variants: Mapping[str, single.Written]) -> tuple[Results, Summary]:
    written = next(iter(variants.values()))
    return written.results, written.summary
