"""Calls of ``torch.nn.functional.linear`` made inside a module's forward, as they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Heard", "listen", "unlisten"]

Heard: TypeAlias = Callable[[Tensor, Tensor, Tensor], None]  #: told input, weight and output

_listeners: list[Heard] = []
_plain: list[Callable[..., Tensor]] = []  # what F.linear was before the first listener came


def listen(heard: Heard) -> None:
    """Tell ``heard`` of every call until :func:`unlisten`; while nobody listens, F is untouched."""
    if not _listeners:
        _plain.append(F.linear)
        vars(F)["linear"] = _linear
    _listeners.append(heard)


def unlisten(heard: Heard) -> None:
    """Tell ``heard`` no more."""
    _listeners.remove(heard)
    if not _listeners:
        vars(F)["linear"] = _plain.pop()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    output = _plain[-1](input, weight, bias, **kwargs)
    for heard in tuple(_listeners):
        heard(input, weight, output)
    return output
