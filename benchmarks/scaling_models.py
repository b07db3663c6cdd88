"""Memory and seconds on an H100 for language models up to 7 billion parameters, on paper.

    python benchmarks/scaling_models.py

Nothing is built or measured: shapes, the counts of ``natgrad.flops`` and the rates of
``natgrad.machine.H100``, of which those of decompositions are assumptions. Attention's own products
and everything elementwise in the model are left out of its passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from natgrad import blocks
from natgrad.blocks import Block
from natgrad.flops import DECOMPOSITIONS, Rows, Stages, backward_again, layer_passes
from natgrad.machine import H100, Machine

METHODS = ("KFAC", "TKFAC", "EKFAC", "TEKFAC")
TF32 = replace(H100, products=((16, 5e12), (128, 5e13), (512, 2.4e14)))
MACHINES = {"float32": H100, "TF32": TF32}
DTYPES = " / ".join(MACHINES)
SEQUENCE = 1024


@dataclass(frozen=True)
class Spec:
    """Equal layers ``[o, i]``."""

    o: int
    i: int
    count: int = 1
    embeds: bool = False  #: input rows are unit vectors; the head has the same matrix

    def block(self, method: str, widest: int | None = None) -> Block:
        return getattr(blocks, method)(
            (self.o, self.i), damping=1e-3, device=torch.device("meta"),
            diagonal_input=self.embeds, widest=widest,
        )  # fmt: skip


def gpt(width: int, depth: int) -> list[Spec]:
    """GPT-2: biases everywhere, a vocabulary of 50257."""
    return [
        Spec(3 * width, width + 1, depth),
        Spec(width, width + 1, depth),
        Spec(4 * width, width + 1, depth),
        Spec(width, 4 * width + 1, depth),
        Spec(width, 50257, embeds=True),
    ]


def llama(width: int, inner: int, depth: int) -> list[Spec]:
    """No biases, gated feed-forward, a vocabulary of 32000."""
    return [
        Spec(width, width, 4 * depth),
        Spec(inner, width, 2 * depth),
        Spec(width, inner, depth),
        Spec(width, 32000, embeds=True),
    ]


MODELS = {
    "GPT-2 124M": gpt(768, 12),
    "GPT-2 350M": gpt(1024, 24),
    "GPT 1.3B": gpt(2048, 24),
    "GPT 2.7B": gpt(2560, 32),
    "LLaMA 7B": llama(4096, 11008, 32),
}


def rows_of(tokens: int) -> Rows:
    return Rows(tokens // SEQUENCE, SEQUENCE)


def summed(found: Iterable[Stages], counts: Iterable[int]) -> Stages:
    total = Stages(0, 0, 0)
    for stages, count in zip(found, counts, strict=True):
        total = total.plus(Stages(*(count * part for part in stages)))
    return total


def stages_of(
    specs: Sequence[Spec], method: str, tokens: int, widest: int | None, machine: Machine
) -> Stages:
    """Seconds of each stage, all layers."""
    found = (machine.stages(spec.block(method, widest).cost(rows_of(tokens))) for spec in specs)
    return summed(found, (spec.count for spec in specs))


def model_seconds(specs: Iterable[Spec], tokens: int) -> tuple[float, float]:
    """Of the model's own passes in bfloat16, and of one more backward pass for the statistics."""
    own, again, rows = 0.0, 0.0, rows_of(tokens)
    for spec in specs:
        o, i = (spec.i, spec.o) if spec.embeds else (spec.o, spec.i)  # the head
        own += spec.count * H100.model_seconds(layer_passes(o, i, rows), 2)
        again += spec.count * H100.model_seconds(backward_again(o, i, rows), 2)
    return own, again


def memory(specs: Iterable[Spec], method: str) -> tuple[float, float]:
    """Bytes kept between steps, and those that wait between backward pass and step besides."""
    kept = waiting = 0.0
    for spec in specs:
        block = spec.block(method)
        kept += spec.count * block.state_bytes()
        waiting += spec.count * sum(moment.value.nbytes for moment in block.moments())
    return kept, waiting


# factors split into diagonal blocks --------------------------------------------------------------


def split_memory(specs: Iterable[Spec], widest: int | None) -> float:
    """Factors and inverses, in float32."""
    return sum(spec.count * spec.block("KFAC", widest).state_bytes() for spec in specs)


def split_ratio(
    specs: Sequence[Spec], method: str, widest: int | None, devices: int, machine: Machine
) -> str:
    """Seconds of a step over those of the plain model at 10/100, 8192 tokens on each device.

    Decompositions and solves of whole factors are dealt out; no device is done before the largest
    one. What devices send each other is left out.
    """
    own, again = model_seconds(specs, 8192)
    total = stages_of(specs, method, 8192, widest, machine)
    decomposition = max(total.decomposition / devices, longest(specs, method, widest, machine))
    extra = (again + total.statistics) / 10 + decomposition / 100 + total.solve / devices
    return f"{(own + extra) / own:.2f}"


def longest(specs: Iterable[Spec], method: str, widest: int | None, machine: Machine) -> float:
    """Seconds of the largest single decomposition."""
    found = (
        machine.seconds([work]) / work.calls
        for spec in specs
        for work in spec.block(method, widest).cost(Rows()).decomposition
        if work.kind in DECOMPOSITIONS
    )
    return max(found)


# tables ------------------------------------------------------------------------------------------


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def gib(size: float) -> str:
    return f"{size / 2**30:.3g}"


def print_memory() -> None:
    lines = []
    for name, specs in MODELS.items():
        parameters = sum(spec.o * spec.i * spec.count for spec in specs)
        found = [memory(specs, method) for method in ("KFAC", "EKFAC")]
        cells = [f"{gib(kept)} + {gib(waiting)}" for kept, waiting in found]
        lines.append([name, f"{parameters / 1e9:.3g}", gib(8 * parameters), *cells])
    header = ["model", "10^9 parameters", "Adam's moments", "KFAC, TKFAC", "EKFAC, TEKFAC"]
    print("Memory in GiB, float32, kept + waiting for the step:\n")
    table(header, lines)


def print_seconds(tokens: int) -> None:
    lines = []
    for name, specs in MODELS.items():
        own, again = model_seconds(specs, tokens)
        for method in METHODS:
            each = [
                stages_of(specs, method, tokens, None, machine) for machine in MACHINES.values()
            ]
            cells = [name, method, f"{own:.3g}", f"{again:.3g}"]
            cells += [" / ".join(f"{x:.3g}" for x in column) for column in zip(*each, strict=True)]
            for s, r in ((1, 10), (10, 100)):
                ratios = [(own + again / s + stages.per_step(s, r)) / own for stages in each]
                cells.append(" / ".join(f"{ratio:.3g}" for ratio in ratios))
            lines.append(cells)
    header = ["model", "method", "its passes", "backward again", *Stages._fields, "1/10", "10/100"]
    print(f"Seconds on one H100, {tokens} tokens a step; ratio to the model alone; {DTYPES}:\n")
    table(header, lines)


def print_splits() -> None:
    lines = []
    for name, specs in MODELS.items():
        for widest in (None, 4096, 2048, 1024):
            label = "whole" if widest is None else str(widest)
            cells = [name, label, gib(split_memory(specs, widest))]
            cells += [
                split_ratio(specs, method, widest, devices, TF32)
                for method in ("KFAC", "EKFAC")
                for devices in (1, 8, 64)
            ]
            lines.append(cells)
    on = [f"{method}, {k}" for method in ("KFAC", "EKFAC") for k in (1, 8, 64)]
    print("Factors split at a width, work dealt out to devices; ratio at 10/100 with TF32:\n")
    table(["model", "widest factor", "GiB", *on], lines)


if __name__ == "__main__":
    print_memory()
    for tokens in (8192, 65536):
        print_seconds(tokens)
    print_splits()
