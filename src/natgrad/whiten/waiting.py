"""Refits that are shared out over the steps of an interval."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

from natgrad.flops import EIGH
from natgrad.schedule import balanced
from natgrad.whiten.module import Whitened
from natgrad.whiten.statistics import Statistics

__all__ = ["Waiting"]


class Waiting:
    """Statistics of layers, each until the step of the interval at which it is refitted.

    Steps that refit any layer have about the same work each and lie evenly in the interval.

    Args:
        layers: by name.
        every: steps of an interval.
    """

    def __init__(self, layers: Mapping[str, Whitened], every: int) -> None:
        names, costs = list(layers), [_cost(layer) for layer in layers.values()]
        groups = balanced(costs, every)
        self.slots = {
            place * every // len(groups): [names[index] for index in sorted(group)]
            for place, group in enumerate(groups)
        }
        self.seen: dict[str, Statistics] = {}

    def put(self, seen: Mapping[str, Statistics]) -> None:
        """Begin an interval with these."""
        self.seen = dict(seen)

    def take(self, step: int, layers: Collection[str]) -> dict[str, Statistics]:
        """What waits for this step of the interval, of those of its layers that are left."""
        due = [name for name in self.slots.get(step, ()) if name in self.seen]
        found = {name: self.seen.pop(name) for name in due}
        return {name: seen for name, seen in found.items() if name in layers}

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, of the layers that wait."""
        return {name: seen.state_dict() for name, seen in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Any], layers: Mapping[str, Whitened]) -> None:
        """Go on from what was saved."""
        self.seen = {
            name: Statistics.loaded(saved, layers[name].weight.device)
            for name, saved in state.items()
        }


def _cost(layer: Whitened) -> float:
    """Flop of a decomposition and of new parameters and momentum."""
    k = layer.view.channels[1]
    return EIGH * k**3 * prod(layer.view.groups) + 8 * k * layer.weight.numel()
