"""What a user gives as residuals, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

__all__ = [
    "Given",
    "PointResiduals",
    "Residuals",
    "listed",
    "loss",
    "scaled",
    "substituted",
]

Reduction: TypeAlias = Literal["mean", "sum"]


class PointResiduals:
    """Residuals that belong to points: ``r_n = fn(u, x_n)`` with ``u`` the model at one point.

    Every point's gradient is taken by itself, ``vmap`` of reverse mode over chunks of points, so
    that thousands of points and tens of thousands of parameters cost no more than a few backward
    passes over them. A Poisson equation ``-laplace u = f``::

        interior = natgrad.PointResiduals(lambda u, x: laplacian(u, x) + f(x), points)
        boundary = natgrad.PointResiduals(lambda u, x: u(x), edge)
        opt.step((interior, boundary))

    Several tensors of points are handed to ``fn`` side by side, so that least squares is
    ``PointResiduals(lambda u, x, y: u(x) - y, inputs, targets)``.

    Args:
        fn: ``fn(u, x, ...)`` with one row of each tensor of points; returns a scalar or a tensor.
            ``torch.func`` must be able to differentiate and map it: no ``.item()``, no
            ``torch.autograd.grad`` in it (:func:`natgrad.laplacian`, ``torch.func.grad``), no
            branch on values. A model that insists on a batch is called as ``u(x[None])[0]``.
        points: tensors ``[n, ...]``.
        weight: of this part's loss, a number or one for each point ``[n]`` (quadrature).

    Raises:
        TypeError: ``fn`` can't be called, or points are no tensors.
        ValueError: no points, tensors of different lengths, or a weight below zero.
    """

    def __init__(
        self, fn: Callable[..., Tensor], *points: Tensor, weight: float | Tensor = 1.0
    ) -> None:
        if not callable(fn) or not all(isinstance(x, Tensor) for x in points):
            raise TypeError("PointResiduals takes a function fn(u, x) and tensors of points")
        lengths = [len(x) if x.ndim else 0 for x in points]
        if not lengths or min(lengths) == 0 or len(set(lengths)) > 1:
            raise ValueError(
                f"PointResiduals needs tensors of equally many points, [n, ...]; got {lengths}"
            )
        self.weight = torch.as_tensor(weight)
        if self.weight.ndim > 1 or (self.weight.ndim and len(self.weight) != lengths[0]):
            raise ValueError(
                f"weight must be a number or one for each of the {lengths[0]} points, got shape "
                f"{list(self.weight.shape)}"
            )
        if not bool((self.weight >= 0).all()):
            raise ValueError("weight must be >= 0")
        self.fn, self.points = fn, points

    def __len__(self) -> int:
        return len(self.points[0])

    def of(self, model: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
        """The residuals ``[n, ...]``, differentiable, each times the root of its weight.

        Args:
            model: the function ``u``.
            dtype: what parameters and points are converted to first; None leaves them.
        """
        state = substituted(model, dict(model.named_parameters()), dtype)
        found: Tensor = vmap(lambda *x: self.at(model, state, *x))(*self.converted(dtype))
        return found * self.roots(found)

    def at(self, model: nn.Module, state: Mapping[str, Tensor], *x: Tensor) -> Tensor:
        """The residual of one point, without its weight, with these parameters and buffers."""
        return self.fn(lambda *inputs: functional_call(model, dict(state), inputs), *x)

    def roots(self, like: Tensor) -> Tensor:
        """Roots of the weights, in the shape that multiplies ``like [n, ...]``."""
        root = self.weight.to(like).sqrt()
        return root.reshape(-1, *[1] * (like.ndim - 1)) if root.ndim else root

    def converted(self, dtype: torch.dtype | None) -> list[Tensor]:
        """The points in another dtype; indices stay."""
        return [_to(x, dtype) for x in self.points]


Given: TypeAlias = PointResiduals | Callable[[], Any]
Residuals: TypeAlias = Given | Sequence[Given]


def listed(given: Residuals) -> list[Given]:
    """The parts of what a user gives.

    Raises:
        TypeError: a part is neither point residuals nor a function.
        ValueError: there is none.
    """
    parts: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
    if not parts:
        raise ValueError("natgrad: no residuals: the tuple is empty")
    for part in parts:
        if not isinstance(part, PointResiduals) and not callable(part):
            raise TypeError(
                "natgrad: a part of the residuals must be a PointResiduals or a function without "
                f"arguments that returns tensors, got {type(part).__name__}"
            )
    return parts


def evaluated(part: Callable[[], Any]) -> list[Tensor]:
    """The tensors that a function of the parameters returns.

    Raises:
        TypeError: not tensors, or not of a floating dtype.
        ValueError: a scalar, or nothing in it.
    """
    with torch.enable_grad():
        found = part()
    return checked(list(found) if isinstance(found, (tuple, list)) else [found])


def checked(tensors: list[Any]) -> list[Tensor]:
    """The tensors themselves, if they can be residuals; see :func:`evaluated`."""
    if not tensors:
        raise ValueError("natgrad: no residuals: the function returned an empty tuple")
    for r in tensors:
        if not isinstance(r, Tensor) or not r.dtype.is_floating_point:
            what = str(r.dtype) if isinstance(r, Tensor) else type(r).__name__
            raise TypeError(f"natgrad: residuals must be tensors of a floating dtype, got {what}")
        if r.ndim == 0:
            raise ValueError(
                "natgrad: residuals must have a dimension: return the vector r, not the loss "
                "1/2 |r|^2 (or one residual as r[None])"
            )
        if r.numel() == 0:
            raise ValueError(f"natgrad: residuals of shape {list(r.shape)} are empty")
    return tensors


def scaled(r: Tensor, reduction: Reduction) -> Tensor:
    """One part as a vector whose ``1/2 |r|^2`` is its loss."""
    return r.flatten() / r.numel() ** 0.5 if reduction == "mean" else r.flatten()


def loss(model: nn.Module, residuals: Residuals, reduction: Reduction = "mean") -> Tensor:
    """``1/2 sum_parts mean r^2`` (or ``1/2 |r|^2``), differentiable, for any other optimizer.

    Args:
        model: the function ``u`` of point residuals.
        residuals: as :meth:`natgrad.ExactNGD.step` takes them.
        reduction: over a part's residuals.
    """
    vectors = [
        scaled(r, reduction)
        for part in listed(residuals)
        for r in (
            checked([part.of(model)]) if isinstance(part, PointResiduals) else evaluated(part)
        )
    ]
    return torch.stack([r.square().sum() / 2 for r in vectors]).sum()


def substituted(
    model: nn.Module, parameters: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Parameters and buffers of a functional call, in a dtype."""
    buffers = {} if dtype is None else dict(model.named_buffers())
    return {name: _to(x, dtype) for name, x in {**buffers, **parameters}.items()}


def _to(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.to(dtype) if dtype is not None and x.dtype.is_floating_point else x
