"""Module hooks that stay behind when their module is copied, pickled or compiled."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from natgrad.layers import LayerView

__all__ = ["Hook", "Listener", "nothing"]

WHY = "natgrad listens to layers between graphs: compile the model without fullgraph=True"


class Hook:
    """What natgrad registers on modules.

    A deep copy of a model (a moving average of its weights, a target network) or a pickled one
    must not carry the optimizer along: the copy's hooks do nothing. Under ``torch.compile`` the
    hook is called outside of the compiled graph, which is split there.

    Args:
        call: what the hook does.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        # here and not at import: torch then imports its compiler, which takes seconds
        self.call, self._outside = call, _outside_of_graphs(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the hook does."""
        if torch.compiler.is_compiling():
            return self._outside(*args, **kwargs)
        return self.call(*args, **kwargs)  # straight: the detour takes longer than most hooks

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _left_behind, ()


class Listener(ABC):
    """Something with hooks on layers; a copy of it listens to its own model.

    Args:
        views: the layers.
    """

    def __init__(self, views: Sequence[LayerView]) -> None:
        self._handles: list[RemovableHandle] = []
        self.watch(views)

    def watch(self, views: Sequence[LayerView]) -> None:
        """Listen to these layers from now on, and to no others."""
        self.remove()
        self.views = views
        self._handles = list(self.attach())

    def remove(self) -> None:
        """Take all hooks off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @abstractmethod
    def attach(self) -> Iterator[RemovableHandle]:
        """Put the hooks on."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.watch(self.views)


def nothing(*args: Any, **kwargs: Any) -> None:
    """What is left of a hook in a copy."""


def _left_behind() -> Callable[..., None]:
    return nothing


def _outside_of_graphs(call: Callable[..., Any]) -> Callable[..., Any]:
    says = "reason" in inspect.signature(torch.compiler.disable).parameters  # newer versions
    reason = {"reason": WHY} if says else {}
    found: Callable[..., Any] = torch.compiler.disable(call, **reason)  # type: ignore[no-untyped-call]
    return found
