"""Our own backward passes: from the logits to the outputs of the layers, and no further.

Asked for the gradients at all outputs, the engine would hold them all until it is done. It is
asked for those at the *ends* alone, the outputs with no other one between them and the inputs. On
its way there it surely passes every other output, where a hook meets the gradient; it can be let
go of as soon as the layer's rows have been taken. The hooks lie on nodes of the graph for as long
as the passes take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from natgrad.passes import Use

__all__ = ["Backward", "reached"]

Places: TypeAlias = dict[Node, list[tuple[int, Use]]]


class Backward:
    """Backward passes from the logits through all layers; the graph is kept.

    Args:
        root: place of the logits in the graph.
        uses: of each layer, by index. Those that the logits do not depend on are passed over.
        done: told a layer's index when a pass has been through all its uses.
    """

    def __init__(
        self,
        root: GradientEdge,
        uses: Mapping[int, Sequence[Use]],
        done: Callable[[int], None],
    ) -> None:
        self.root, self.done = root, done
        self._at_logits: list[tuple[int, Use]] = []
        places: Places = {}
        for index, use in ((index, use) for index, listed in uses.items() for use in listed):
            if use.edge is None:
                self._at_logits.append((index, use))
            else:
                places.setdefault(use.edge.node, []).append((index, use))
        is_end = reached(root.node, places)
        self._ends = [at for node, end in is_end.items() if end for at in places[node]]
        self._between = {node: places[node] for node, end in is_end.items() if not end}
        between = (at for listed in self._between.values() for at in listed)
        self._count = Counter(index for index, _ in (*self._at_logits, *self._ends, *between))
        self._left: Counter[int] = Counter()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """:meth:`send` may be called inside."""
        handles = []
        try:
            for node, listed in self._between.items():
                handles.append(node.register_prehook(partial(self._pass, listed)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def send(self, column: Tensor) -> None:
        """One backward pass with the gradient ``column`` at the logits."""
        self._left = self._count.copy()
        for index, use in self._at_logits:
            self._arrive(index, use, column)
        edges = [use.edge for _, use in self._ends if use.edge is not None]
        if not edges:
            return
        found = torch.autograd.grad(
            [self.root], edges, [column], retain_graph=True, allow_unused=True
        )
        for (index, use), grad in zip(self._ends, found, strict=True):
            self._arrive(index, use, grad)

    def _pass(self, listed: list[tuple[int, Use]], grads: Any) -> None:
        """The engine comes by a node."""
        for index, use in listed:
            assert use.edge is not None
            self._arrive(index, use, grads[use.edge.output_nr])

    def _arrive(self, index: int, use: Use, grad: Tensor | None) -> None:
        if grad is not None:
            use.reached(grad)
        self._left[index] -= 1
        if not self._left[index]:
            self.done(index)


def reached(root: Node, places: Collection[Node]) -> dict[Node, bool]:
    """Which places the graph of ``root`` holds, and whether each has no other one below it."""
    is_end: dict[Node, bool] = {}
    above: dict[Node, bool] = {}  # whether a node is a place, or lies above one
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if node in above:
            waiting.pop()
            continue
        below = [each for each, _ in node.next_functions if each is not None]
        unknown = [each for each in below if each not in above]
        if unknown:
            waiting += unknown
            continue
        above[node] = any(above[each] for each in below)
        if node in places:
            is_end[node] = not above[node]
            above[node] = True
    return is_end
