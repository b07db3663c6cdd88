"""Modules and parameters of a model as they were read, to see quickly whether they still are."""

from __future__ import annotations

from operator import is_

from torch import nn

__all__ = ["Inventory"]


class Inventory:
    """What :meth:`changed` compares a model with; a comparison costs no walk over names.

    Args:
        model: read now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self._modules = list(model.modules())
        self._parts = self._read()
        self._trained = [p.requires_grad for p in self.parameters]

    def changed(self) -> bool:
        """Whether parameters were frozen, unfrozen, added or replaced since, or modules were."""
        if [p.requires_grad for p in self.parameters] != self._trained:
            return True
        now = self._read()
        return len(now) != len(self._parts) or not all(map(is_, now, self._parts))

    def _read(self) -> list[nn.Module | nn.Parameter | None]:
        """Every module's children and parameters, a None behind each kind."""
        parts: list[nn.Module | nn.Parameter | None] = []
        for module in self._modules:
            parts.extend(module._modules.values())
            parts.append(None)
            parts.extend(module._parameters.values())
            parts.append(None)
        return parts
