"""The latest training batches, as far as a refit needs them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import Any

from torch import Tensor

from natgrad.distributed import world_size
from natgrad.whiten.module import Whitened
from natgrad.whiten.statistics import Statistics

__all__ = ["Window"]


class Window:
    """Statistics of the steps before a refit that hold ``samples`` examples.

    Listens to the training loop's own forward passes (:attr:`Whitened.counts`). Between two windows
    calls are only counted.

    Args:
        layers: what is listened to.
        samples: examples a window should hold, those of all processes together.
        gradients: whether to take in gradients with respect to the layers' outputs.
    """

    def __init__(self, layers: Mapping[str, Whitened], samples: int, gradients: bool) -> None:
        self.layers, self.samples, self.gradients = layers, samples, gradients
        self.open = True
        self.batch = 0  #: examples of the last step, all of them on this process
        self.examples = 0  #: examples the window holds
        self._calls: dict[str, int] = {}
        self.seen: dict[str, Statistics] = {}
        self.start()

    def start(self) -> None:
        """Begin an empty window."""
        self.open, self.examples = True, 0
        self.seen = {name: Statistics.none() for name in self.layers}

    def listen(self) -> None:
        """Hear every call of the layers, until :meth:`unlisten`."""
        for name, layer in self.layers.items():
            layer.heard = partial(self._hear, name)

    def unlisten(self) -> None:
        """Hear no more."""
        for layer in self.layers.values():
            layer.heard = None

    def _hear(self, name: str, layer: Whitened, h: Tensor, output: Tensor) -> None:
        if not layer.counts:
            return
        self._calls[name] = self._calls.get(name, 0) + layer.view.examples(h)
        if self.open:
            self.seen[name].hear(layer, h, output, self.gradients)

    def stepped(self) -> None:
        """An optimizer step is over: count its examples."""
        if self._calls:
            self.batch = min(self._calls.values())  # a layer called twice has counted them twice
            self._calls.clear()
        if self.open:
            self.examples += self.batch

    def prepare(self, left: int, eager: bool) -> None:
        """Open for the steps before the next refit that are needed, and no earlier.

        Args:
            left: steps until the next refit.
            eager: whether it comes as soon as enough was seen.
        """
        per_step = self.batch * world_size()
        needed = eager or not per_step or left <= ceil(self.samples / per_step)
        if needed and not self.open:
            self.start()
        elif self.open and not needed:
            self.close()

    def close(self) -> None:
        """Forget what was seen, and only count from here on."""
        self.start()
        self.open = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        seen = {name: s.state_dict() for name, s in self.seen.items()}
        return {
            "open": self.open, "batch": self.batch, "examples": self.examples,
            "calls": dict(self._calls), "seen": seen,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was saved."""
        self.start()
        self.open, self.batch, self.examples = state["open"], state["batch"], state["examples"]
        self._calls = dict(state["calls"])
        for name, saved in state["seen"].items():
            self.seen[name] = Statistics.loaded(saved, self.layers[name].weight.device)
