"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(lines: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Lines of a table with its columns aligned and a rule below the header.

    Args:
        lines: the header, then the rows.
        left: so many columns are aligned left, the others right; None is all of them.
    """
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    left = len(widths) if left is None else left
    table = [
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    table.insert(1, "-" * max(map(len, table)))
    return table
