"""What a way of whitening consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from natgrad.layers import Whitenable
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.module import Whitened
from natgrad.whiten.statistics import Statistics

__all__ = ["Rule"]


class Rule(ABC):
    """Makes a layer's constants of its statistics.

    A new rule is one file with a frozen dataclass. One that changes constants in the forward pass
    itself returns a subclass of :class:`Whitened` from :meth:`layer` and has ``every = None``, or
    ``by_layers`` if the layers have a use for it.
    """

    every: int | None  #: optimizer steps between refits; None leaves them to the layers
    samples: int | None  #: examples that statistics are taken of; None is all of the data
    by_layers: bool = False  #: whether ``every`` is for the layers, which renew their constants
    gradients: bool = False  #: whether the rule needs gradients with respect to layers' outputs
    from_training: bool = False  #: whether refits take training batches though data was given
    spread: bool = False  #: whether layers are refitted one after the other over an interval

    def layer(self, view: Whitenable) -> Whitened:
        """The module for a layer, its function unchanged."""
        return Whitened(view, self.start(view))

    def layers(self, model: nn.Module, views: Sequence[Whitenable]) -> dict[str, Whitened]:
        """The modules for all layers of a model, by name; ``model`` is still as it was."""
        return {view.name: self.layer(view) for view in views}

    def start(self, view: Whitenable) -> Constants:
        """The constants of the identity; their shapes are those of all constants to come."""
        weight = view.module.weight
        k, q = view.channels[1], view.groups
        P = torch.eye(k, dtype=weight.dtype, device=weight.device).repeat(*q, 1, 1)
        return Constants(P, weight.new_zeros(*q, k) if view.has_bias else None)

    @abstractmethod
    def constants(self, layer: Whitened, seen: Statistics) -> Constants:
        """New constants for a layer that has seen this."""
