"""What is done with every parameter, as a table that prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

from torch import nn

from natgrad.curvature import Blockwise, Curvature, Joint, Layer
from natgrad.flops import Rows, model_flops
from natgrad.layers import LayerView, Uncovered
from natgrad.table import aligned

__all__ = ["Report", "Row", "report_on"]


@dataclass(frozen=True)
class Row:
    """One parameter."""

    parameter: str
    shape: tuple[int, ...]
    handled: str  #: name of the block, "plain gradient" or "frozen"
    block: str  #: sizes of what is decomposed, "A 785, G 80", "10 x (A 2, G 1)" for groups
    bytes: int  #: memory of the block, counted at its first parameter
    flops: float  #: of its statistics, decompositions and solves, averaged over the schedule
    share: float  #: of all the step's flops, forward and backward passes included
    reason: str  #: why it is not preconditioned


@dataclass(frozen=True)
class Report:
    """Every parameter of a model with how it is handled, and the totals."""

    rows: tuple[Row, ...]
    model_flops: float = nan  #: of forward and backward passes through the covered layers
    seen: bool = False  #: whether a batch has been seen; until then, flops are those of one row

    @property
    def flops(self) -> float:
        """Of all blocks, averaged over the schedule."""
        return sum(row.flops for row in self.rows)

    @property
    def bytes(self) -> int:
        """Memory of all blocks."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("parameter", "shape", "handled", "block", "memory", "work", "reason")
        lines = [header] + [
            (
                row.parameter,
                "x".join(map(str, row.shape)) or "scalar",
                row.handled,
                row.block,
                _megabytes(row.bytes) if row.bytes else "",
                f"{row.share:.1%}" if row.flops else "",
                row.reason,
            )
            for row in self.rows
        ]
        return "\n".join([*aligned(lines), self._total()])

    def _total(self) -> str:
        curved = sum(not row.reason for row in self.rows)
        covered = f"{curved} of {len(self.rows)} parameters preconditioned"
        passes = f"{self.model_flops:.3g} of the layers' own passes"
        work = f"{self.flops:.3g} flop a step beside {passes}"
        basis = "at the last batch" if self.seen else "for a single row: no batch has been seen yet"
        return f"{covered}, {_megabytes(self.bytes)}\n{work}, {basis}"


def report_on(
    model: nn.Module,
    curvature: Curvature,
    views: Sequence[LayerView],
    uncovered: Sequence[Uncovered],
    stats_every: int,
    refresh_every: int,
) -> Report:
    """The report of a model whose covered layers and left-over modules are given."""
    names = {id(p): name for name, p in model.named_parameters()}
    layers = curvature.layers if isinstance(curvature, Blockwise) else []
    passes = sum(model_flops(*x.view.shape, x.rows or Rows()) * x.block.count for x in layers)
    work = [x.block.flops(x.rows or Rows()).per_step(stats_every, refresh_every) for x in layers]
    total = passes + sum(work)
    rows: dict[int, Row] = {}
    for layer, flops in zip(layers, work, strict=True):
        _add(rows, names, layer, flops, flops / total)
    seen = any(layer.rows is not None for layer in layers)
    if isinstance(curvature, Joint):
        seen = curvature.J is not None
        known = [curvature.rows.get(index, Rows()) for index in range(len(views))]
        passes = sum(
            model_flops(*view.shape, each) * (view.groups[0] if view.groups else 1)
            for view, each in zip(views, known, strict=True)
        )
        rows |= _joint_rows(names, views, curvature, passes)
    for entry in uncovered:
        for p in entry.module.parameters(recurse=False):
            handled = "plain gradient" if p.requires_grad else "frozen"
            row = Row(names[id(p)], tuple(p.shape), handled, "", 0, 0, 0, entry.reason)
            rows.setdefault(id(p), row)
    for name, p in model.named_parameters():  # a frozen bias beside a covered weight
        frozen = Row(name, tuple(p.shape), "frozen", "", 0, 0, 0, "requires_grad=False")
        rows.setdefault(id(p), frozen)
    return Report(tuple(rows[id(p)] for p in model.parameters()), passes, seen)


def _add(
    rows: dict[int, Row], names: dict[int, str], layer: Layer, flops: float, share: float
) -> None:
    """The parameters of a layer; its figures stand with the first."""
    block = layer.block
    memory = sum(buffer.numel() * buffer.element_size() for buffer in block.buffers())
    sizes = block.sizes if block.count == 1 else f"{block.count} x ({block.sizes})"
    reason = "" if block.is_ready else "until its first statistics: plain gradient"
    for p in layer.view.parameters().values():
        kind, before = type(block).__name__, rows.get(id(p))
        if before is not None:  # several blocks share it, each has some of its rows
            memory, flops, share = memory + before.bytes, flops + before.flops, share + before.share
            sizes = "; ".join(filter(None, [before.block, sizes]))
        shape, known = tuple(p.shape), flops if isfinite(flops) else 0
        rows[id(p)] = Row(names[id(p)], shape, kind, sizes, memory, known, share, reason)
        memory, sizes, flops, share = 0, "", 0, 0


def _joint_rows(
    names: dict[int, str], views: Sequence[LayerView], curvature: Joint, passes: float
) -> dict[int, Row]:
    """All covered parameters are one block; its figures stand with the first."""
    parameters = [p for view in views for p in view.parameters().values()]
    J = curvature.J
    P = sum(p.numel() for p in parameters)
    sizes = f"F {P}" if J is None else f"F {P}, {J.shape[0]} gradients"
    memory = 0 if J is None else J.nbytes
    reason = "" if J is not None else "until its first statistics: plain gradient"
    flops = curvature.flops()
    share = flops / (flops + passes)
    rows = {}
    for p in parameters:
        shape = tuple(p.shape)
        rows[id(p)] = Row(names[id(p)], shape, "exact", sizes, memory, flops, share, reason)
        memory, sizes, flops, share = 0, "same", 0, 0
    return rows


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
