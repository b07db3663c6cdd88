"""What becomes of an optimizer's state when a layer's constants change (MATH 5.4).

Between refits the optimizer works in coordinates ``(V, d)`` that the refit replaces. What it keeps
is of three sorts, and each has its own way over:

- a **displacement** (the momentum buffer of SGD and RMSprop) moves like the parameters themselves:
  ``m_V <- Q_new^-1 Q_old m_V P_old P_new^-1`` and, for ``Q = I``,
  ``m_d <- m_d + (m_V P_old) (c_new - c_old)``. The velocity of ``(W, b)`` is kept exactly (V:D7).
- an average of **gradients** (Adam's ``exp_avg``) moves by the chain rule.
- a **second moment** of gradients, one number per coordinate, has no exact way into other
  coordinates. Taken as the diagonal of a matrix it has one: the ``R o R`` rule of MATH 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.sample import statistics_dtype
from natgrad.whiten.coordinates import canonical, carried_gradient, whitened
from natgrad.whiten.module import Change, Pair

__all__ = ["STATES", "carry"]

STATES = ("transport", "rotate", "reset", "keep")
DISPLACEMENTS = ("momentum_buffer",)
GRADIENTS = ("exp_avg", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
#: powers of what gradients are multiplied by if a feature changes its scale
POWERS = {
    **dict.fromkeys((*DISPLACEMENTS, "ax", "step_size"), -1),
    **dict.fromkeys((*GRADIENTS, "exp_inf", "prev"), 1),
    **dict.fromkeys((*SECOND_MOMENTS, "max_exp_avg_sq"), 2),
    "acc_delta": -2,
}


def carry(optimizer: torch.optim.Optimizer, how: str, change: Change) -> None:
    """Take the state of one layer's parameters into the new coordinates, in place.

    ``"transport"`` carries displacements; a layer whose state holds anything else (Adam and its
    kin) starts anew. ``"rotate"`` carries averages and second moments of gradients as well.
    ``"reset"`` lets every layer start anew, ``"keep"`` leaves the numbers as they are, which is
    wrong in the new coordinates and here for comparison. Between refits PRONG+ changes the scale of
    single features: all but ``"keep"`` then carry state of every sort, which is exact.
    """
    if how == "keep":
        return
    if change.rescaling:
        _rescale(optimizer, change)
        return
    weight, bias = change.layer.weight, change.layer.bias
    ways = _ways(how)
    kept = {name for p in (weight, bias) if p is not None for name in _tensors(optimizer, p)}
    if kept <= ways.keys():
        for name in sorted(kept):
            _carry(optimizer, change, name, ways[name])
    else:
        for p in (weight, bias):
            if p is not None and p in optimizer.state:
                _reset(optimizer, p)


def _rescale(optimizer: torch.optim.Optimizer, change: Change) -> None:
    """Multiply each column of the weight's state by its power of the column's ratio.

    Numbers of a sort that is not known stay as they are: to drop them at every step were worse.
    """
    layer = change.layer
    for name, buffer in _tensors(optimizer, layer.weight).items():
        factor = change.new.P.unsqueeze(-2) ** POWERS.get(name, 0)
        M, _ = layer.matrices(buffer, None)
        buffer.copy_(layer.tensors(M * factor, None)[0])


def _ways(how: str) -> dict[str, Callable[[Change, Tensor, Tensor | None], Pair]]:
    if how == "reset":
        return {}
    ways: dict[str, Callable[[Change, Tensor, Tensor | None], Pair]] = {}
    ways.update(dict.fromkeys(DISPLACEMENTS, _displacement))
    if how == "rotate":
        ways.update(dict.fromkeys(GRADIENTS, partial(_gradient, squared=False)))
        ways.update(dict.fromkeys(SECOND_MOMENTS, partial(_gradient, squared=True)))
    return ways


def _displacement(change: Change, V: Tensor, d: Tensor | None) -> Pair:
    old, new = (x.to(V.dtype, copy=False) for x in (change.old, change.new.inverted()))
    return whitened(new, *canonical(old, V, d))


def _gradient(change: Change, V: Tensor, d: Tensor | None, squared: bool) -> Pair:
    return carried_gradient(change.old, change.new, V, d, squared)


def _tensors(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    """The parts of the state that have one number per coordinate."""
    state = optimizer.state.get(p, {})
    return {
        key: x
        for key, x in state.items()
        if isinstance(x, Tensor) and x.ndim and x.shape == p.shape
    }


def _carry(
    optimizer: torch.optim.Optimizer,
    change: Change,
    name: str,
    way: Callable[[Change, Tensor, Tensor | None], Pair],
) -> None:
    """Carry one buffer of a layer; a parameter that has none yet counts as zeros."""
    layer = change.layer
    parameters = (layer.weight, layer.bias)
    # a displacement is no part of the function, which is what float64 keeps
    displaced = way is _displacement
    dtype = statistics_dtype(layer.weight.dtype) if displaced else torch.float64
    buffers = [None if p is None else _tensors(optimizer, p).get(name) for p in parameters]
    found = [
        p if p is None else (torch.zeros_like(p) if buffer is None else buffer).to(dtype)
        for p, buffer in zip(parameters, buffers, strict=True)
    ]
    assert found[0] is not None
    carried = layer.tensors(*way(change, *layer.matrices(found[0], found[1])))
    for buffer, tensor in zip(buffers, carried, strict=True):
        if buffer is not None and tensor is not None:
            buffer.copy_(tensor)


def _reset(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> None:
    """As before the first step, bias corrections included."""
    state: dict[str, Any] = optimizer.state[p]
    if "sum" not in state:
        state.clear()
        return
    # Adagrad fills its state when it is made, all others at their first step
    state["sum"].fill_(optimizer.defaults.get("initial_accumulator_value", 0))
    if isinstance(state.get("step"), Tensor):
        state["step"].zero_()
