"""What can be seen of a layer's call: calls inside a module, outputs changed in place later."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

__all__ = ["Heard", "in_backward", "listen", "reentrant", "unlisten", "whole"]

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


def whole(output: Tensor) -> Tensor:
    """The tensor that ``output`` is a mere reshape of, or ``output`` itself.

    A Linear layer on sequences returns such a view. An operation in place on a view takes the
    view's own node out of the graph, but not its base's: that is where gradients surely pass.
    """
    base = output._base
    if base is None or not base.requires_grad or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def in_backward() -> bool:
    """Whether a backward pass is under way: activation checkpointing runs forwards again there."""
    return bool(torch._C._current_graph_task_id() != -1)


def trains(model: nn.Module) -> bool:
    """Whether a forward pass of the model that begins now is one of training."""
    return model.training and torch.is_grad_enabled() and not in_backward()


def reentrant() -> bool:
    """Whether the caller is being recomputed by a reentrant activation checkpoint."""
    frame, code = inspect.currentframe(), CheckpointFunction.backward.__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
