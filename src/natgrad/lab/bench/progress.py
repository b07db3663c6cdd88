"""How far a benchmark is, on standard error: a line that stays on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from natgrad.lab.progress import BAR_WIDTH, LINE_EVERY_S, clock

__all__ = ["Progress"]


class Progress:
    """Tells what is being done, how much of it is done, and how long the rest will take.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.title = console, ""
        self._since = self._printed = time.monotonic()
        self._live = Live(console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, title: str) -> None:
        """Something new begins."""
        self.title, self._since = title, time.monotonic()

    def tell(self, done: int, of: int, what: str) -> None:
        """So many steps of so many parts are done; ``what`` is next."""
        if done == 0:  # another round of turns
            self._since = time.monotonic()
        elapsed = time.monotonic() - self._since
        left = clock(elapsed / done * (of - done)) if done else ""
        words = ", ".join(filter(None, (self.title, f"{done} of {of}", what, left)))
        if self._live is not None:
            line = Table.grid(padding=(0, 1))
            line.add_row(ProgressBar(of, done, BAR_WIDTH), Text(words, no_wrap=True))
            self._live.update(line)
        elif time.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = time.monotonic()
            self.console.print(words, markup=False, highlight=False, soft_wrap=True)
