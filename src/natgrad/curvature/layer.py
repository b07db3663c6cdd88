"""One covered layer: its view, its curvature block, and where the step stands."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from natgrad.blocks import Block, Exact
from natgrad.damping import Damping, Given, LayerDamping, on_eigenvalues
from natgrad.flops import Rows
from natgrad.layers import LayerView
from natgrad.sample import Sample, statistics_dtype

__all__ = ["Accumulated", "Layer", "key_of", "new_block", "remark_unheard"]


@dataclass
class Accumulated:
    """Examples behind the gradient of a mean loss, which one step may gather in several backwards.

    The loss is taken for the mean over the examples of all backward passes of a step; several
    forward passes within one backward are parts of the same examples.
    """

    unit: int = 0  #: examples of the first pass; samples are scaled as if all were like it
    backwards: list[list[int]] = field(default_factory=list)  #: [task, examples, passes]

    def add(self, examples: int) -> float:
        """Count a pass; returns what its gradients are to be multiplied by."""
        task = torch._C._current_graph_task_id()
        self.unit = self.unit or examples
        if self.backwards and self.backwards[-1][0] == task:
            self.backwards[-1][1] += examples
            self.backwards[-1][2] += 1
        else:
            self.backwards.append([task, examples, 1])
        return self.unit / examples

    def factor(self) -> float:
        """What makes gradients scaled by ``unit`` those of one example's loss."""
        total = sum(examples / passes for _, examples, passes in self.backwards)
        return total / self.unit if self.unit else 1.0

    def clear(self) -> None:
        """A new step begins."""
        self.unit = 0
        self.backwards.clear()

    def state(self) -> list[list[int]]:
        """Plain values."""
        return [[self.unit, 0, 0], *([-1, n, passes] for _, n, passes in self.backwards)]

    def load(self, state: list[list[int]]) -> None:
        """The inverse."""
        self.unit, self.backwards = state[0][0], [list(entry) for entry in state[1:]]


@dataclass
class Layer:
    """One covered layer."""

    view: LayerView
    block: Block
    failures: int = 0  #: failed decompositions in a row
    rows: Rows | None = None  #: of the last batch seen
    scale: float = 1.0  #: of the natural gradient, where the damping says so
    natural: bool = False  #: whether ``.grad`` is the natural gradient already (fused)
    plain: Tensor | None = None  #: the plain gradient of a fused layer
    held: list[Sample] = field(default_factory=list)  #: to measure the scale in the next basis
    loss: Accumulated = field(default_factory=Accumulated)

    def __post_init__(self) -> None:
        self._own: Damping = self.block.damping

    def give(self, damping: LayerDamping | None) -> None:
        """Take a damping that was decided over all layers; None goes back to the block's own."""
        self.block.damping = self._own if damping is None else Given(damping.ridge)
        self.scale = 1.0 if damping is None else float(damping.scale)

    def measure(self) -> None:
        """Let the scale of the samples held, in the basis now in use, wait for the commit."""
        for sample in self.held:
            self.block.rescale(sample)
        self.held.clear()

    def cost(self) -> float:
        """Of a decomposition, in flop; on paper."""
        counted = self.block.flops(Rows()).decomposition
        return counted if isfinite(counted) else float(sum(d**3 for d in self.block.shape))

    def is_unheard(self) -> bool:
        """Whether it has a gradient, but none came some way that the tap hears."""
        return not self.block.observed() and (M := self.view.grad()) is not None and bool(M.any())

    def discard(self) -> None:
        """Drop what waits for a step."""
        self.natural, self.plain = False, None
        self.held.clear()
        self.loss.clear()
        for moment in self.block.moments():
            moment.discard()

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on, besides the block, which is a module."""
        damping = self.block.damping
        return {
            "failures": self.failures,
            "scale": self.scale,
            "ridge": damping.value if isinstance(damping, Given) else None,
            "held": [sample.state() for sample in self.held],
            "loss": self.loss.state(),
            "natural": self.natural,
            "plain": self.plain,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse, on the block's device and in its dtype."""
        self.failures, ridge = state["failures"], state["ridge"]
        if isinstance(ridge, Tensor):
            ridge = ridge.to(self.block.ready.device, self.block.dtype)
        self.give(None if ridge is None else LayerDamping(ridge, state["scale"]))
        self.held = [
            Sample.from_state(entry).to(self.block.dtype, self.block.ready.device)
            for entry in state["held"]
        ]
        self.loss.load(state["loss"])
        self.natural, plain = state["natural"], state["plain"]
        self.plain = None if plain is None else plain.to(self.block.ready.device, self.block.dtype)


def key_of(view: LayerView) -> str:
    """A name for the layer and the parameters of it that are trained; a valid module name."""
    return f"{view.name}({','.join(view.slots())})".replace(".", "/")


def new_block(block: type[Block], view: LayerView, **kwargs: Any) -> Block:
    """The block of a layer; norm layers get their exact one whatever was asked for."""
    weight = next(iter(view.parameters().values()))
    if view.exact:
        block = Exact
        kwargs["damping"] = on_eigenvalues(kwargs["damping"])
    return block(
        view.shape, groups=view.groups, diagonal_input=view.diagonal_input,
        dtype=statistics_dtype(weight.dtype), device=weight.device, **kwargs,
    )  # fmt: skip


def remark_unheard(layers: Iterable[Layer]) -> bool:
    """Warn of layers whose gradient came some way that the tap does not hear, if there are any."""
    unheard = [repr(layer.view.name) for layer in layers if layer.is_unheard()]
    if unheard:
        warnings.warn(
            f"natgrad: {', '.join(unheard)}: a gradient but no statistics, so it stays plain. "
            "Layers are heard where they are called as modules within a forward of the model "
            "that the optimizer was made from (a part that torch.compile has run before: make "
            "the optimizer first, or call torch.compiler.reset())",
            RuntimeWarning,
            stacklevel=5,
        )
    return bool(unheard)
