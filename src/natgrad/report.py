"""What is done with every parameter, as a table that prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from natgrad.blocks import Block
from natgrad.layers import LayerView, Uncovered

__all__ = ["Report", "Row", "report_on"]


@dataclass(frozen=True)
class Row:
    """One parameter."""

    parameter: str
    shape: tuple[int, ...]
    handled: str  #: name of the block, "plain gradient" or "frozen"
    block: str  #: sizes of what is decomposed, "A 785, G 80"
    bytes: int  #: memory of the block, counted at its first parameter
    reason: str  #: why it is not preconditioned


@dataclass(frozen=True)
class Report:
    """Every parameter of a model with how it is handled, and the totals."""

    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """Memory of all blocks."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("parameter", "shape", "handled", "block", "memory", "reason")
        lines = [header] + [
            (
                row.parameter,
                "x".join(map(str, row.shape)) or "scalar",
                row.handled,
                row.block,
                _megabytes(row.bytes) if row.bytes else "",
                row.reason,
            )
            for row in self.rows
        ]
        widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        table.insert(1, "-" * max(map(len, table)))
        return "\n".join([*table, self._total()])

    def _total(self) -> str:
        curved = sum(not row.reason for row in self.rows)
        return f"{curved} of {len(self.rows)} parameters preconditioned, {_megabytes(self.bytes)}"


def report_on(
    model: nn.Module,
    layers: Sequence[tuple[LayerView, Block]],
    uncovered: Sequence[Uncovered],
) -> Report:
    """The report of a model whose covered layers and left-over modules are given."""
    rows: dict[int, Row] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for view, block in layers:
        memory = sum(buffer.numel() * buffer.element_size() for buffer in block.buffers())
        sizes = f"A {view.shape[1]}, G {view.shape[0]}"
        reason = "" if block.is_ready else "until its first statistics: plain gradient"
        for p in view.parameters().values():
            kind = type(block).__name__
            if id(p) in rows:  # several blocks share it, each has some of its rows
                memory += rows[id(p)].bytes
                sizes = "; ".join(filter(None, [rows[id(p)].block, sizes]))
            rows[id(p)] = Row(names[id(p)], tuple(p.shape), kind, sizes, memory, reason)
            memory, sizes = 0, ""
    for entry in uncovered:
        for p in entry.module.parameters(recurse=False):
            handled = "plain gradient" if p.requires_grad else "frozen"
            rows.setdefault(id(p), Row(names[id(p)], tuple(p.shape), handled, "", 0, entry.reason))
    for name, p in model.named_parameters():  # a frozen bias beside a covered weight
        rows.setdefault(id(p), Row(name, tuple(p.shape), "frozen", "", 0, "requires_grad=False"))
    return Report(tuple(rows[id(p)] for p in model.parameters()))


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
