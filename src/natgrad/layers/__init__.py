"""How each kind of module is read as a matrix map: one file per kind of layer."""

from __future__ import annotations

from torch import nn

from natgrad.layers.base import LayerView, Uncovered
from natgrad.layers.linear import LinearView

__all__ = ["VIEWS", "LayerView", "LinearView", "Uncovered", "views_of"]

VIEWS: tuple[type[LayerView], ...] = (LinearView,)


def view_of(name: str, module: nn.Module) -> LayerView | Uncovered:
    """The view that covers ``module``, or why none does."""
    for View in VIEWS:
        if View.reads(module):
            reason = View.refuses(module)
            return Uncovered(name, module, reason) if reason else View(name, module)
    return Uncovered(name, module, f"no view for {type(module).__name__}")


def views_of(model: nn.Module) -> tuple[list[LayerView], list[Uncovered]]:
    """Views of all modules of ``model`` with parameters of their own, and what is left over.

    A parameter that two modules share is left to its plain gradient: each module alone would
    precondition it by its own statistics.
    """
    found = [
        view_of(name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    users: dict[int, list[str]] = {}
    for entry in found:
        for parameter in entry.module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(entry.name)
    covered: list[LayerView] = []
    uncovered: list[Uncovered] = []
    for entry in found:
        sharing = _sharing(entry, users)
        if isinstance(entry, LayerView) and not sharing:
            covered.append(entry)
        elif isinstance(entry, LayerView):
            reason = f"shares a parameter with {', '.join(sharing)}"
            uncovered.append(Uncovered(entry.name, entry.module, reason))
        else:
            uncovered.append(entry)
    return covered, uncovered


def _sharing(entry: LayerView | Uncovered, users: dict[int, list[str]]) -> list[str]:
    """Names of the other modules that hold a parameter of ``entry``."""
    names = {
        name
        for parameter in entry.module.parameters(recurse=False)
        for name in users[id(parameter)]
    }
    return sorted(names - {entry.name})
