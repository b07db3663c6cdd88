"""Modules and parameters of a model as they were read, to see quickly whether they still are."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

__all__ = ["Inventory"]


class Entry(NamedTuple):
    """One module as it was."""

    module: nn.Module
    children: list[nn.Module | None]
    parameters: list[nn.Parameter | None]
    trained: list[bool]


class Inventory:
    """What :meth:`changed` compares a model with; a comparison costs no walk over names.

    Args:
        model: read now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self._entries = [_entry(module) for module in model.modules()]

    def changed(self) -> bool:
        """Whether parameters were frozen, unfrozen, added or replaced since, or modules were."""
        return any(_differs(entry) for entry in self._entries)


def _entry(module: nn.Module) -> Entry:
    children, parameters = [*module._modules.values()], [*module._parameters.values()]
    return Entry(
        module, children, parameters, [p is not None and p.requires_grad for p in parameters]
    )


def _differs(entry: Entry) -> bool:
    module, children, parameters, trained = entry
    if len(module._modules) != len(children) or len(module._parameters) != len(parameters):
        return True
    for now, before in zip(module._modules.values(), children, strict=True):
        if now is not before:
            return True
    for p, q, required in zip(module._parameters.values(), parameters, trained, strict=True):
        if p is not q or (p is not None and p.requires_grad != required):
            return True
    return False
