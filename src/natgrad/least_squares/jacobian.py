"""The Jacobian of residuals with respect to the parameters, in chunks, by the cheapest way.

All functions return ``J [R, P]`` with the parameters' entries side by side, row-major.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from natgrad.least_squares.residuals import PointResiduals, substituted

__all__ = ["CHUNK_BYTES", "by_columns", "by_points", "by_rows", "flat", "rows_at_once"]

CHUNK_BYTES = 2**28  #: what the gradients of a chunk may take, with what their computation holds
HELD = 4  #: copies of a chunk's gradients that exist at once, about


def rows_at_once(parameters: Sequence[Tensor], dtype: torch.dtype, budget: int) -> int:
    """Rows of ``J`` that fit a budget of bytes; at least one."""
    row = sum(p.numel() for p in parameters) * torch.finfo(dtype).bits // 8
    return max(1, budget // (HELD * max(1, row)))


def flat(
    parts: Sequence[Tensor | None], parameters: Sequence[Tensor], batch: Sequence[int] = ()
) -> Tensor:
    """Tensors in the parameters' shapes side by side, after leading dimensions of their own.

    None is zero.
    """
    like = next((part for part in parts if part is not None), parameters[0])
    found = [
        like.new_zeros(*batch, p.numel()) if part is None else part.reshape(*batch, p.numel())
        for part, p in zip(parts, parameters, strict=True)
    ]
    return torch.cat(found, dim=-1)


def by_rows(r: Tensor, parameters: Sequence[Tensor], chunk: int) -> Tensor:
    """Reverse mode: so many rows in one batched backward pass over the graph of ``r [R]``."""
    found = []
    for begin in range(0, len(r), chunk):
        size = min(chunk, len(r) - begin)
        basis = r.new_zeros(size, len(r))
        basis[torch.arange(size), begin + torch.arange(size)] = 1
        found.append(_pulled_back(r, parameters, basis))
    return torch.cat(found)


def _pulled_back(r: Tensor, parameters: Sequence[Tensor], basis: Tensor) -> Tensor:
    def along(u: Tensor, batched: bool) -> Tensor:
        parts = torch.autograd.grad(
            r, parameters, u, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        return flat(parts, parameters, (len(u),) if batched else ())

    try:
        return along(basis, True)
    except RuntimeError:  # something in the graph can't be batched
        return torch.stack([along(row, False) for row in basis])


class _Closed(nn.Module):
    """A function that reads a model's parameters, as a module whose parameters they are."""

    def __init__(self, model: nn.Module, call: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self) -> Tensor:
        return self.call()


def by_columns(
    call: Callable[[], Tensor], model: nn.Module, names: Sequence[str], chunk: int
) -> Tensor | None:
    """Forward mode: so many columns in one batched forward pass of a function of the model.

    Args:
        call: returns ``r [R]`` for the parameters that the model has at the moment.
        model: whose parameters are replaced while ``call`` runs.
        names: of the parameters in it.
        chunk: columns at once.

    Returns:
        None where ``torch.func`` can't differentiate or map ``call``.
    """
    own = dict(model.named_parameters())
    point = {f"model.{name}": own[name].detach() for name in names}
    closed, sizes = _Closed(model, call), [own[name].numel() for name in names]

    def along(direction: Tensor) -> Tensor:
        parts = torch.split(direction, sizes)
        tangent = {
            k: part.reshape(x.shape) for part, (k, x) in zip(parts, point.items(), strict=True)
        }
        found: Tensor = jvp(lambda w: functional_call(closed, w, ()), (point,), (tangent,))[1]
        return found

    like, found = own[names[0]], []
    try:
        for begin in range(0, sum(sizes), chunk):
            size = min(chunk, sum(sizes) - begin)
            basis = like.new_zeros(size, sum(sizes))
            basis[torch.arange(size), begin + torch.arange(size)] = 1
            found.append(vmap(along)(basis))
    except (RuntimeError, NotImplementedError):
        return None
    return torch.cat(found).mT


def by_points(
    part: PointResiduals,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    chunk: int,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Every point by itself: ``vmap`` of reverse mode over chunks of points.

    Returns:
        The residuals ``[n, ...]`` and their Jacobian ``[n m, P]``, with the weights.
    """
    own = {id(p): name for name, p in model.named_parameters()}
    names = [own.get(id(p)) for p in parameters]
    every = substituted(model, {k: p.detach() for k, p in model.named_parameters()}, dtype)
    wanted = {name: every[name] for name in names if name is not None}

    def one(*x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        r, pull = vjp(  # type: ignore[misc]
            lambda w: part.at(model, {**every, **w}, *x), wanted
        )
        if r.numel() == 1:
            return r, {name: g.unsqueeze(0) for name, g in pull(torch.ones_like(r))[0].items()}
        basis = torch.eye(r.numel(), dtype=r.dtype, device=r.device).reshape(-1, *r.shape)
        return r, vmap(pull)(basis)[0]

    values, rows = [], []
    for begin in range(0, len(part), chunk):
        each = [x[begin : begin + chunk] for x in part.converted(dtype)]
        r, gradients = vmap(one)(*each)
        columns = [None if name is None else gradients[name] for name in names]
        values.append(r)
        rows.append(flat(columns, parameters, (len(r), r[0].numel())))
    found, J = torch.cat(values), torch.cat(rows)  # [n, ...], [n, m, P]
    roots = part.roots(found)
    scale = roots.reshape(-1, 1, 1) if roots.ndim else roots
    return found * roots, J.mul_(scale).flatten(0, 1)
