"""How figures look: Okabe-Ito colours, a marker per optimizer, ink that follows the page.

Matplotlib is used without pyplot, inside `rc_context`: a caller's settings, backend and open
figures stay as they are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK = "#1f2328"
GRID = "#d8dde3"
# Okabe and Ito (2008) without the yellow, which no white page carries
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_KNOWN = {"sgd": (INK, "o"), "kfac": ("#0072b2", "s"), "adam": ("#e69f00", "^")}

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.dpi": 100.0,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "savefig.bbox": None,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.color": INK,
    "ytick.labelsize": 8.0,
}


@dataclass(frozen=True)
class Look:
    """Colour and marker of one optimizer; the line style tells train from test."""

    colour: str
    marker: str


def looks(optimizers: Sequence[str]) -> dict[str, Look]:
    """Give every optimizer a colour and marker; no two the same pair, `sgd` always in ink."""
    known = {name: Look(*_KNOWN[name]) for name in optimizers if name in _KNOWN}
    taken = set(known.values())
    free = _pairs({look.colour for look in taken}, {look.marker for look in taken})
    return {name: known[name] if name in known else next(free) for name in optimizers}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style inside a with block, and put the caller's settings back."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure for papers: a vector PDF and a PNG.

    Args:
        figure: The figure.
        path: Of both files, without a suffix; its folder is made if missing.

    Returns:
        The files written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for kind in ("pdf", "png"):
        metadata = {"CreationDate": None} if kind == "pdf" else {}
        files.append(path.parent / f"{path.name}.{kind}")
        with styled():
            figure.savefig(files[-1], dpi=200, metadata=metadata)
        figure.set_layout_engine("none")  # it is laid out: both files alike, and in half the time
    return files


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return a figure as an svg element for a page.

    Ink, grid and the colours of curves become CSS variables, so that the page can lighten them on
    a dark ground; ids get a prefix, since those of all figures on a page share one space.

    Args:
        figure: The figure.
        prefix: What makes ids unique on the page.
        label: What the figure shows, for those who don't see it; empty for an ornament.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    head = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    seen = f'role="img" aria-label={quoteattr(label)}' if label else 'aria-hidden="true"'
    return f"{head} {seen}{svg[svg.index('>') :]}"


def plain_logarithm(axis: Axis, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis with numbers as they are, at these multiples of powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def literal(text: str) -> str:
    """Return text that matplotlib prints as it is, without reading dollars as mathematics."""
    return text.replace("$", r"\$")


def _pairs(colours: set[str], markers: set[str]) -> Iterator[Look]:
    fresh = [c for c in COLOURS if c not in colours] + [c for c in COLOURS if c in colours]
    shapes = [m for m in MARKERS if m not in markers] + [m for m in MARKERS if m in markers]
    number = 0
    while True:
        turn, place = divmod(number, len(fresh))
        yield Look(fresh[place], shapes[(place + turn) % len(shapes)])
        number += 1
