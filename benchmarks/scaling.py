"""How cost grows with width, depth, batch and positions: on paper, and by measurement.

    python benchmarks/scaling.py paper
    python benchmarks/scaling.py measured

``paper`` builds blocks on the meta device and allocates nothing. ``measured`` times the stages of
one layer on one core (CPU seconds): exponents over the whole range and at its end,
those of the counted flops in brackets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log

import torch

from natgrad import blocks
from natgrad.blocks import Block
from natgrad.decompose import decompose
from natgrad.flops import Cost, Rows, Stages
from natgrad.sample import Sample

METHODS = ("KFAC", "EKFAC", "Diagonal")  # TKFAC and TEKFAC grow as the first two
META = torch.device("meta")


@dataclass(frozen=True)
class Spec:
    """Equal layers ``[o, i]``."""

    o: int
    i: int
    count: int = 1

    def block(self, method: str) -> tuple[Block, int]:
        """The block of one of them, and how many there are."""
        return getattr(blocks, method)((self.o, self.i), damping=1e-3, device=META), self.count


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def paper() -> None:
    """Doubling one quantity at a time: by how much each stage's flop and words grow."""
    base = Spec(1024, 1024)
    rows = Rows(64, 16)
    changes: dict[str, tuple[Spec, Rows]] = {
        "width": (replace(base, o=2048, i=2048), rows),
        "depth": (replace(base, count=2), rows),
        "batch": (base, rows._replace(examples=128)),
        "positions": (base, rows._replace(positions=32)),
        "columns": (base, rows._replace(columns=2)),
    }
    lines = []
    for method in METHODS:
        before = _flops(base, method, rows)
        for name, (spec, each) in changes.items():
            after = _flops(spec, method, each)
            factors = [_times(b, a) for b, a in zip(before[:3], after[:3], strict=True)]
            memory = _state(spec, method) / _state(base, method)
            lines.append([method, name, *factors, f"{memory:.2f}"])
    header = ["method", "doubled", "statistics", "decomposition", "solve", "state"]
    table(header, lines)


def _flops(spec: Spec, method: str, rows: Rows) -> Stages:
    block, count = spec.block(method)
    cost: Cost = block.cost(rows)
    found = cost.flops if method != "Diagonal" else cost.bytes
    return Stages(*(count * part for part in found))


def _state(spec: Spec, method: str) -> float:
    block, count = spec.block(method)
    return count * block.state_bytes()


def _times(before: float, after: float) -> str:
    return f"{after / before:.2f}" if before else "-"


def measured() -> None:
    """CPU seconds of the stages of one layer at sizes that double, and fitted exponents."""
    sweeps: dict[str, list[tuple[int, int, Rows]]] = {
        "width": [(d, d, Rows(1024)) for d in (128, 256, 512, 1024)],
        "batch": [(512, 512, Rows(n)) for n in (512, 1024, 2048, 4096)],
        "positions": [(256, 256, Rows(32, t)) for t in (16, 32, 64, 128)],
    }
    lines = []
    for method in ("KFAC", "EKFAC"):
        for name, points in sweeps.items():
            seconds = [stages_measured(method, *point) for point in points]
            built = [
                getattr(blocks, method)(point[:2], damping=1e-3, device=META) for point in points
            ]
            counted = [block.flops(point[2]) for block, point in zip(built, points, strict=True)]
            cells = [
                f"{_exponent(took)}, {_exponent(took[-2:])} ({_exponent(flops)})"
                for took, flops in zip(
                    zip(*seconds, strict=True), zip(*counted, strict=True), strict=True
                )
            ]
            lines.append([method, name, *cells])
    table(["method", "in", *Stages._fields], lines)


def _exponent(values: Sequence[float]) -> str:
    """Of the growth over sizes that double, from the first to the last."""
    return f"{log(values[-1] / values[0]) / log(2) / (len(values) - 1):.2f}"


def stages_measured(method: str, o: int, i: int, rows: Rows) -> Stages:
    """The fastest of five."""
    torch.manual_seed(0)
    block: Block = getattr(blocks, method)((o, i), damping=1e-3)
    n, t, c = rows[:3]
    sample = Sample(torch.randn(n, t, i), torch.randn(c, n, t, o))
    M = torch.randn(o, i)

    def observe() -> None:
        block.observe(sample)
        block.rescale(sample)
        for moment in block.moments():
            moment.commit()

    def refresh() -> None:
        factors = block.factors()
        found = decompose(list(factors.values()))
        pairs = zip(factors, found, strict=True)
        block.load({name: each for name, each in pairs if each is not None})

    observe()
    refresh()
    return Stages(*(_fastest(run) for run in (observe, refresh, lambda: block.solve(M))))


def _fastest(run: Callable[[], object]) -> float:
    found = []
    for _ in range(5):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return max(min(found), 1e-6)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("table", choices=["paper", "measured"])
    torch.set_num_threads(1)
    {"paper": paper, "measured": measured}[arguments.parse_args().table]()
