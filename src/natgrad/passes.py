"""One forward pass as the tap saw it, and the samples that backward passes make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from natgrad.homogeneous import Homogeneous
from natgrad.layers import LayerView
from natgrad.patches import Patches
from natgrad.sample import Inputs, OneHot, Sample, concatenated, statistics_dtype

__all__ = ["Arranged", "Pass", "Use", "as_it_is", "batch_first", "sample_of"]

Arranged: TypeAlias = Callable[[Tensor], Tensor]
Rows = TypeVar("Rows", Tensor, Inputs)


@dataclass
class Use:
    """One call of one layer within a forward pass."""

    view: LayerView
    h: Tensor  #: the input, arranged
    shape: torch.Size  #: of the output
    edge: GradientEdge | None  #: place in the graph; None where the output is the logits
    arranged: Arranged  #: puts the batch first, and picks the layer's part of the output
    grads: list[Tensor] = field(default_factory=list)

    def reached(self, grad: Tensor) -> None:
        """A gradient with respect to the output has arrived."""
        self.grads.append(self.arranged(grad.detach().reshape(self.shape)))


@dataclass
class Pass:
    """One forward pass of the model: the uses of each layer, by index of its view."""

    number: int
    uses: dict[int, list[Use]] = field(default_factory=dict)
    done: bool = False

    def mark_logits(self, f: Tensor) -> None:
        """Let uses whose output is the logits forget the graph.

        The logits' node holds the pass through its hook; the pass must not hold the node in turn,
        or activations would stay until the garbage collector comes by.
        """
        node = get_gradient_edge(f).node if f.requires_grad else None
        for uses in self.uses.values():
            for use in uses:
                if use.edge is not None and (use.edge.node, use.edge.output_nr) == (
                    node,
                    f.output_nr,
                ):
                    use.edge = None


def sample_of(uses: list[Use], examples: int | None) -> Sample:
    """Pair the rows of all uses; several uses are further positions of the same examples.

    Args:
        uses: of one layer in one pass, all reached.
        examples: of the batch, where the logits are known.
    """
    inputs = [_by_example(use.view.inputs(use.h), examples) for use in uses]
    outputs = [_by_example(_columns(use), examples) for use in uses]
    if len({rows.shape[-3] for rows in inputs}) > 1:
        inputs, outputs = _as_one(inputs), _as_one(outputs)
    weight = next(iter(uses[0].view.parameters().values()))
    dtype = statistics_dtype(weight.dtype)
    g = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)
    return Sample(concatenated(inputs), g).to(dtype)


def _columns(use: Use) -> Tensor:
    """The output rows ``[(q,) c, n, t, o]`` of all columns; a single one is not copied."""
    rows = [use.view.output_rows(grad) for grad in use.grads]
    return rows[0].contiguous().unsqueeze(-4) if len(rows) == 1 else torch.stack(rows, -4)


def as_it_is(z: Tensor) -> Tensor:
    """``z``."""
    return z


def batch_first(z: Tensor) -> Tensor:
    """``[t, n, k]`` as ``[n, t, k]``."""
    return z.transpose(0, 1) if z.ndim == 3 else z


def _by_example(rows: Rows, examples: int | None) -> Rows:
    """Rows of a layer that saw ``[n t, ...]`` back by example, as ``[n, t, k]``.

    A count that is no multiple of ``examples`` has no batch dimension: it is one example.
    """
    count, positions = rows.shape[-3:-1]
    if examples is None or count == examples:
        return rows
    n = examples if count % examples == 0 else 1
    t = count * positions // n
    if isinstance(rows, OneHot):
        return OneHot(rows.indices.reshape(n, t), rows.size)
    if isinstance(rows, Homogeneous):
        return rows.by_example(n, t)
    if isinstance(rows, Patches):
        rows = rows.rows
    return rows.reshape(*rows.shape[:-3], n, t, rows.shape[-1])


def _as_one(uses: list[Rows]) -> list[Rows]:
    """All rows of all uses as positions of one example: their batches differ."""
    return [_by_example(rows, 1) for rows in uses]
