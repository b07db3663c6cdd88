"""Rows of the user's backward pass, kept until the step, where they give ``G^-1 M A^-1`` cheaper.

With fewer rows than a layer is wide, ``(g G^-1)^T (a A^-1)`` costs less than ``G^-1 M A^-1``, and
is the same where the gradient ``M`` is ``g^T a`` and nothing else: no penalty in the loss, no
second backward pass, no clipping in between. That is seen from the memory of ``.grad``: it must be
the very tensor that the layer's own backward made, unchanged since. A change that tensors don't
count (by ``.grad.data``, or a GradScaler) shows in a projection.

``.grad`` is the plain gradient until the step, as ever; :mod:`natgrad.fused` does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natgrad.hooks import Hook, Listener
from natgrad.layers import LayerView, LinearView
from natgrad.sample import Sample, statistics_dtype

__all__ = ["RetainedRows"]

NODES = ("AddmmBackward0", "MmBackward0")  #: of a Linear layer on a batch of vectors
ROUNDINGS = 64  #: by so many a projection may differ, relative to the sum of magnitudes


class Made(NamedTuple):
    """What a layer's backward made of its rows."""

    h: Tensor
    g: Tensor
    places: list[tuple[nn.Parameter, int, int]]  #: memory and version of each gradient


class Kept(NamedTuple):
    """Rows whose gradients are what stands in ``.grad``."""

    h: Tensor
    g: Tensor
    grads: list[tuple[nn.Parameter, Tensor, int]]


class RetainedRows(Listener):
    """Hooks that keep the rows of ``nn.Linear`` layers for which ``wanted`` says that it pays.

    Args:
        views: the layers.
        wanted: told a layer's index and its number of rows.
        ignored: whether the backward pass now running is none of the user's.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        *,
        wanted: Callable[[int, int], bool],
        ignored: Callable[[], bool],
    ) -> None:
        self.wanted, self.ignored = wanted, ignored
        self._made: dict[int, list[Made]] = {}
        self._kept: dict[int, Kept] = {}
        super().__init__(views)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_made": {}, "_kept": {}}

    def attach(self) -> Iterator[RemovableHandle]:
        """Listen to each layer's forward pass."""
        for index, view in enumerate(self.views):
            if isinstance(view, LinearView) and not view.twins:
                yield view.module.register_forward_hook(Hook(partial(self._called, index)))

    def _called(self, index: int, module: nn.Module, args: Any, output: Tensor) -> None:
        node = output.grad_fn
        if node is None or node.name() not in NODES or not args or self.ignored():
            return
        if self.wanted(index, len(output)):
            node.register_hook(partial(self._passed, index, args[0].detach()))

    def _passed(self, index: int, h: Tensor, inputs: Any, outputs: Any) -> None:
        """The backward pass has gone through a layer."""
        if inputs[-1] is None or torch.is_grad_enabled() or self.ignored():
            return
        if not self._made:
            torch.autograd.Variable._execution_engine.queue_callback(self._over)
        slots = self.views[index].slots().values()
        grads = (inputs[-1], inputs[0])[: len(slots)]  # of the weight, and of the bias
        places = [
            (slot.parameter, grad.data_ptr(), grad._version)
            for slot, grad in zip(slots, grads, strict=True)
        ]
        self._made.setdefault(index, []).append(Made(h, outputs[0].detach(), places))

    def _over(self) -> None:
        """The backward pass is over: what became of the gradients that the layers made?"""
        for index, made in self._made.items():
            self._kept.pop(index, None)
            h, g, places = made[-1]
            grads = [
                (p, p.grad, version)
                for p, place, version in places
                if p.grad is not None and p.grad.data_ptr() == place and p.grad._version == version
            ]
            if len(made) == 1 and len(grads) == len(places):
                self._kept[index] = Kept(h, g, grads)
        self._made.clear()

    def rows(self, index: int, M: Tensor) -> Sample | None:
        """The rows whose gradient ``M`` is, or None."""
        kept = self._kept.get(index)
        if kept is None or any(p.grad is not x or x._version != v for p, x, v in kept.grads):
            return None
        view, dtype = self.views[index], statistics_dtype(M.dtype)
        rows = Sample(view.input_rows(kept.h), view.output_rows(kept.g).unsqueeze(-4)).to(dtype)
        return rows if _explains(rows, M) else None

    def clear(self) -> None:
        """Let go of all rows."""
        self._made.clear()
        self._kept.clear()


def _explains(rows: Sample, M: Tensor) -> bool:
    """Whether ``M v = g^T (a v)`` up to rounding for some ``v`` (Freivalds 1977)."""
    assert isinstance(rows.a, Tensor)
    a, g = rows.a.flatten(0, -2), rows.g.flatten(0, -2)
    v = torch.linspace(1, 2, M.shape[-1], dtype=a.dtype, device=a.device)
    apart = (M.to(a.dtype) @ v - g.mT @ (a @ v)).abs()
    allowed = g.abs().mT @ (a.abs() @ v) * (ROUNDINGS * torch.finfo(M.dtype).eps)
    return bool((apart <= allowed).all())
