"""Rows of the user's backward pass, kept until the step, where they give ``G^-1 M A^-1`` cheaper.

With fewer rows than a layer is wide, ``(g G^-1)^T (a A^-1)`` costs less than ``G^-1 M A^-1``, and
is the same where the gradient ``M`` is ``g^T a`` and nothing else: no penalty in the loss, no
second backward pass, no clipping in between. That is seen from the memory of ``.grad``: it must be
the very tensor that the layer's own backward made, unchanged since. A change that tensors don't
count (by ``.grad.data``, or a GradScaler) shows in a projection.

``.grad`` is the plain gradient until the step, as ever; :mod:`natgrad.fused` does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natgrad.hooks import Hook, Listener
from natgrad.layers import LayerView
from natgrad.sample import Sample, statistics_dtype

__all__ = ["Explained", "RetainedRows"]

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


class Explained(NamedTuple):
    """A layer's gradient ``M [o, i]``, and the rows whose ``g^T a`` it is."""

    M: Tensor
    rows: Sample


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
        self._settled = False  # whether what is kept is known to be true
        self._directions: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        super().__init__(views)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_made": {}, "_kept": {}, "_settled": False}

    def attach(self) -> Iterator[RemovableHandle]:
        """Listen to each layer's forward pass."""
        for index, view in enumerate(self.views):
            if view.leaves_rows:
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
        slots = self.views[index].trained.values()
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

    def claims(self) -> dict[int, Tensor]:
        """For each layer whose gradient seems to be made of rows kept, whether it is, a boolean.

        The booleans are still on the layer's device; :meth:`settle` wants to know of them.
        """
        found: dict[int, Tensor] = {}
        for index, kept in self._kept.items():
            if all(p.grad is x and x._version == v for p, x, v in kept.grads):
                found[index] = self._explains(kept)
        return found

    def settle(self, true: Collection[int]) -> None:
        """These layers' claims hold, the others are dropped."""
        self._kept = {index: kept for index, kept in self._kept.items() if index in true}
        self._settled = True

    def explained(self, index: int) -> Explained | None:
        """A layer's gradient with the rows that it is made of, if that is settled."""
        kept = self._kept.get(index) if self._settled else None
        if kept is None:
            return None
        view = self.views[index]
        M = view.grad()
        assert M is not None
        a, g = view.input_rows(kept.h), view.output_rows(kept.g).unsqueeze(-4)
        return Explained(M, Sample(a, g).to(statistics_dtype(M.dtype)))

    def clear(self) -> None:
        """Let go of all rows."""
        self._made.clear()
        self._kept.clear()
        self._settled = False

    def _explains(self, kept: Kept) -> Tensor:
        """Whether ``M v = g^T (a v)`` up to rounding for some ``v`` (Freivalds 1977)."""
        grads = [grad for _, grad, _ in kept.grads]
        dtype = statistics_dtype(grads[0].dtype)
        h, g, W, *b = (x.to(dtype) for x in (kept.h, kept.g, *grads))
        v = self._direction(h)
        Mv, av, size = W @ v, h @ v, h.abs() @ v
        if b:  # the bias column's entry of v is 1
            Mv, av, size = Mv + b[0], av + 1, size + 1
        allowed = (g.abs().mT @ size).mul_(ROUNDINGS * torch.finfo(grads[0].dtype).eps)
        return torch.le(torch.sub(Mv, g.mT @ av).abs_(), allowed).all()

    def _direction(self, h: Tensor) -> Tensor:
        """``v``, as long as the rows are wide."""
        key = h.shape[-1], h.dtype, h.device
        if key not in self._directions:
            self._directions[key] = torch.linspace(1, 2, key[0], dtype=h.dtype, device=h.device)
        return self._directions[key]
