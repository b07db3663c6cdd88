"""What is done with every parameter, as a table that prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from torch import nn

from natgrad.curvature import Blockwise, Curvature, Joint, Layer
from natgrad.flops import Cost, Rows, Stages, Work, known, layer_passes, model_flops
from natgrad.layers import LayerView, Uncovered
from natgrad.machine import Machine
from natgrad.table import aligned

__all__ = ["Report", "Row", "report_on"]

NOTHING = Stages(0, 0, 0)


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
    work: Stages = NOTHING  #: the flops by stage, averaged over the schedule
    costs: tuple[Cost, ...] = ()  #: of its blocks, not averaged


@dataclass(frozen=True)
class Report:
    """Every parameter of a model with how it is handled, and the totals."""

    rows: tuple[Row, ...]
    model_flops: float = nan  #: of forward and backward passes through the covered layers
    seen: bool = False  #: whether a batch has been seen; until then, flops are those of one row
    schedule: tuple[int, int] = (1, 1)  #: steps between statistics, between decompositions
    passes: tuple[Work, ...] = ()  #: the covered layers' own forward and backward passes
    machine: Machine | None = None  #: for which seconds are printed

    @property
    def flops(self) -> float:
        """Of all blocks, averaged over the schedule."""
        return sum(row.flops for row in self.rows)

    @property
    def bytes(self) -> int:
        """Memory of all blocks."""
        return sum(row.bytes for row in self.rows)

    def seconds(self, machine: Machine) -> Stages:
        """Of each stage in the average step, predicted from shapes and the machine's rates."""
        total = NOTHING
        for row in self.rows:
            total = total.plus(self._seconds_of(row, machine))
        return total

    def _seconds_of(self, row: Row, machine: Machine) -> Stages:
        total = NOTHING
        for cost in row.costs:
            total = total.plus(known(machine.stages(cost).averaged(*self.schedule)))
        return total

    def __str__(self) -> str:
        header = (
            "parameter",
            "shape",
            "handled",
            "block",
            "memory",
            "work",
            "stats/dec/solve",
            "reason",
        )
        lines = [header] + [
            (
                row.parameter,
                "x".join(map(str, row.shape)) or "scalar",
                row.handled,
                row.block,
                _megabytes(row.bytes) if row.bytes else "",
                f"{row.share:.1%}" if row.flops else "",
                _split(row) if row.flops else "",
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
        lines = [f"{covered}, {_megabytes(self.bytes)}", *self._predicted(), f"{work}, {basis}"]
        return "\n".join(lines)

    def _predicted(self) -> list[str]:
        if self.machine is None:
            return []
        own = f"{_milliseconds(self.machine.model_seconds(self.passes))} for the layers' own passes"
        stages = ", ".join(
            f"{_milliseconds(seconds)} for {stage}"
            for stage, seconds in self.seconds(self.machine)._asdict().items()
        )
        return [f"{own}, {stages} in the average step, predicted ({self.machine.name})"]


def report_on(
    model: nn.Module,
    curvature: Curvature,
    views: Sequence[LayerView],
    uncovered: Sequence[Uncovered],
    stats_every: int,
    refresh_every: int,
    machine: Machine | None = None,
) -> Report:
    """The report of a model whose covered layers and left-over modules are given."""
    names = {id(p): name for name, p in model.named_parameters()}
    layers = curvature.layers if isinstance(curvature, Blockwise) else []
    seen_rows = [layer.rows or Rows() for layer in layers]
    if isinstance(curvature, Joint):
        seen_rows = [curvature.rows.get(index, Rows()) for index in range(len(views))]
    passes = 0.0
    own: list[Work] = []
    for view, each in zip(views, seen_rows, strict=True):
        count = view.groups[0] if view.groups else 1
        passes += model_flops(*view.shape, each) * count
        own += [work.times(count) for work in layer_passes(*view.shape, each)]
    costs = [layer.block.cost(each) for layer, each in zip(layers, seen_rows, strict=False)]
    work = [known(cost.flops).averaged(stats_every, refresh_every) for cost in costs]
    total = passes + sum(map(sum, work))
    rows: dict[int, Row] = {}
    for layer, stages, cost in zip(layers, work, costs, strict=True):
        _add(rows, names, layer, stages, sum(stages) / total, cost)
    seen = any(layer.rows is not None for layer in layers)
    if isinstance(curvature, Joint):
        seen = curvature.J is not None
        rows |= _joint_rows(names, views, curvature, passes)
    for entry in uncovered:
        for p in entry.module.parameters(recurse=False):
            handled = "plain gradient" if p.requires_grad else "frozen"
            row = Row(names[id(p)], tuple(p.shape), handled, "", 0, 0, 0, entry.reason)
            rows.setdefault(id(p), row)
    for name, p in model.named_parameters():  # a frozen bias beside a covered weight
        frozen = Row(name, tuple(p.shape), "frozen", "", 0, 0, 0, "requires_grad=False")
        rows.setdefault(id(p), frozen)
    found, schedule = tuple(rows[id(p)] for p in model.parameters()), (stats_every, refresh_every)
    return Report(found, passes, seen, schedule, tuple(own), machine)


def _add(
    rows: dict[int, Row], names: dict[int, str], layer: Layer, work: Stages, share: float,
    cost: Cost,
) -> None:  # fmt: skip
    """The parameters of a layer; its figures stand with the first."""
    block = layer.block
    memory = block.state_bytes()
    costs: tuple[Cost, ...] = (cost,)
    sizes = block.sizes if block.count == 1 else f"{block.count} x ({block.sizes})"
    reason = "" if block.is_ready else "until its first statistics: plain gradient"
    for p in layer.view.parameters().values():
        kind, before = type(block).__name__, rows.get(id(p))
        if before is not None:  # several blocks share it, each has some of its rows
            memory, work, share = (
                memory + before.bytes,
                work.plus(before.work),
                share + before.share,
            )
            sizes, costs = "; ".join(filter(None, [before.block, sizes])), before.costs + costs
        rows[id(p)] = Row(
            names[id(p)], tuple(p.shape), kind, sizes, memory, sum(work), share, reason, work, costs
        )
        memory, sizes, work, share, costs = 0, "", NOTHING, 0, ()


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
        work = Stages(0, flops, 0)
        rows[id(p)] = Row(names[id(p)], shape, "exact", sizes, memory, flops, share, reason, work)
        memory, sizes, flops, share = 0, "same", 0, 0
    return rows


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _split(row: Row) -> str:
    """Percent of the row's work in each stage."""
    return "/".join(f"{100 * part / row.flops:.0f}" for part in row.work)
