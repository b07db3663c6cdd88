"""How figures look: Okabe-Ito colours, a marker and a dash per optimizer, ink as the page has it.

Matplotlib is used without pyplot, inside `rc_context`: a caller's settings, backend and open
figures stay as they are.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK = "#1f2328"
GRID = "#d8dde3"
DPI = 200  #: of PNG files
# Okabe and Ito (2008) without the yellow, which no white page carries
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d")
Dash: TypeAlias = Literal["-"] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dash, ...] = (
    "-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)), (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)  # fmt: skip
APART = 8.0  #: least difference in lightness of two lines with the same dash, of 100
_KNOWN = {"sgd": (INK, "o"), "kfac": ("#0072b2", "s"), "adam": ("#e69f00", "^")}

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.0,
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
    "legend.handlelength": 2.7,
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
    """Colour, marker and dash of one optimizer: told apart in print without colours, too."""

    colour: str
    marker: str
    dash: Dash = DASHES[0]


def looks(optimizers: Sequence[str]) -> dict[str, Look]:
    """Give every optimizer a look of its own, `sgd` always in ink.

    No marker comes twice among the first thirteen; lines of one dash differ in lightness by
    `APART` as long as any colour is left that does.
    """
    found = {name: Look(*_KNOWN[name]) for name in optimizers if name in _KNOWN}
    for name in optimizers:
        if name not in found:
            found[name] = _next(list(found.values()))
    return {name: found[name] for name in optimizers}


def lightness(colour: str) -> float:
    """CIE L* of a colour `#rrggbb`, from 0 for black to 100 for white: what it is in grey."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    y = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


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
            figure.savefig(files[-1], dpi=DPI, metadata=metadata)
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


def _next(taken: Sequence[Look]) -> Look:
    """The look for one more: the least used marker and colour, in the first dash that is clear."""
    colours = Counter(look.colour for look in taken)
    markers = Counter(look.marker for look in taken)
    marker = min(MARKERS, key=lambda m: markers[m])
    order = sorted(COLOURS, key=lambda c: colours[c])
    fresh = [look for c in order for d in DASHES if (look := Look(c, marker, d)) not in taken]
    # beyond what can be told apart in grey: at least no two the same
    return next((look for look in fresh if _clear(look, taken)), fresh[0])


def _clear(look: Look, taken: Sequence[Look]) -> bool:
    same = (lightness(other.colour) for other in taken if other.dash == look.dash)
    return all(abs(lightness(look.colour) - other) >= APART for other in same)
