"""What a study found, as the reports show it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natgrad.lab.report.style import DPI
from natgrad.lab.report.text import NOTHING, significant

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from natgrad.lab.tables import Table

CSS_DPI = 96
ENLARGED = 1.35  #: on a page, beside text of 15 pixels


@dataclass(frozen=True)
class Picture:
    """A figure of a study inside a page.

    Attributes:
        source: Of the image.
        caption: Below it.
        width: In the page, in CSS pixels: what is printed in one size is read in one size.
    """

    source: str
    caption: str
    width: int


def written(value: Any) -> str:
    """Return a cell as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return significant(value, 4) if isinstance(value, float) else str(value)


def terminal(table: Table) -> RichTable:
    """Return a table for the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(
        title=escape(table.title), caption=escape(table.note), caption_justify="left",
        box=box.SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    for number, heading in enumerate(table.columns):
        shown.add_column(escape(heading), justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*(escape(written(cell)) for cell in row))
    return shown


def markdown(table: Table) -> str:
    """Return a table in Markdown, its title above and its note below."""
    lines = [
        "| " + " | ".join(map(str, table.columns)) + " |",
        "|---|" + "---:|" * (len(table.columns) - 1),
        *("| " + " | ".join(map(written, row)) + " |" for row in table.rows),
    ]
    note = f"\n\n{table.note}" if table.note else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + note


def pictures(figures: Mapping[str, str], folder: Path) -> list[Picture]:
    """Return a study's figures as images that need no file beside the page."""
    found = []
    for name, caption in figures.items():
        path = folder / "study" / f"{name}.png"
        if path.is_file():
            image = path.read_bytes()
            width = round(ENLARGED * CSS_DPI / DPI * int.from_bytes(image[16:20], "big"))
            data = base64.b64encode(image).decode("ascii")
            found.append(Picture(f"data:image/png;base64,{data}", caption, width))
    return found
