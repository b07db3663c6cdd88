"""The linear least-squares problem around the present parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from natgrad.least_squares.jacobian import (
    CHUNK_BYTES,
    by_columns,
    by_points,
    by_rows,
    flat,
    rows_at_once,
)
from natgrad.least_squares.residuals import (
    Given,
    PointResiduals,
    Reduction,
    checked,
    evaluated,
    scaled,
)

__all__ = ["LIMIT_BYTES", "Linearizer", "System"]

LIMIT_BYTES = 2**31  #: of the Jacobian, 2 GiB


@dataclass(frozen=True)
class System:
    """``r [R]`` with ``1/2 |r|^2`` the loss, and ``J [R, P]`` written out or as two products."""

    r: Tensor
    product: Callable[[Tensor], Tensor]  #: ``J v``
    transposed: Callable[[Tensor], Tensor]  #: ``J^T u``
    J: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """``1/2 |r|^2``."""
        return self.r.square().sum() / 2

    @staticmethod
    def dense(r: Tensor, J: Tensor) -> System:
        """With the Jacobian written out."""
        return System(r, lambda v: J @ v, lambda u: J.mT @ u, J)


@dataclass(frozen=True)
class Linearizer:
    """Makes systems of residuals.

    Attributes:
        model: the function ``u`` of point residuals.
        reduction: of the loss over each part.
        dtype: that everything is computed in; None leaves that of the residuals.
        chunk: rows or columns of ``J`` at once; None as many as fit 256 MiB.
    """

    model: nn.Module
    reduction: Reduction = "mean"
    dtype: torch.dtype | None = None
    chunk: int | None = None

    def value(self, parts: Sequence[Given]) -> float:
        """The loss at the present parameters."""
        return float(self.residuals(parts).square().sum() / 2)

    def residuals(self, parts: Sequence[Given]) -> Tensor:
        """``r [R]`` at the present parameters."""
        with torch.no_grad():
            return torch.cat([r.detach() for part in parts for r in self._vectors(part)])

    def written_out(
        self, parts: Sequence[Given], parameters: Sequence[nn.Parameter], limit: int | None
    ) -> System | None:
        """With ``J`` as a matrix.

        Args:
            parts: of the residuals.
            parameters: the columns of ``J``.
            limit: bytes that ``J`` may take; None any.

        Returns:
            None where it would take more.
        """
        given = [(part, None if _is_points(part) else self._vectors(part)) for part in parts]
        if limit is not None and self._bytes(given, parameters) > limit:
            return None
        found = [self._rows(part, vectors, parameters) for part, vectors in given]
        r, J = (torch.cat(list(each)) for each in zip(*found, strict=True))
        return System.dense(r, J)

    def matrix_free(self, parts: Sequence[Given], parameters: Sequence[nn.Parameter]) -> System:
        """With ``J v`` and ``J^T u`` by backward passes over one graph of all residuals."""
        with torch.enable_grad():
            r = torch.cat([v for part in parts for v in self._vectors(part)])
            _check_depends(r)
            dual = torch.zeros_like(r, requires_grad=True)
            known = {"retain_graph": True, "allow_unused": True}
            pulled = torch.autograd.grad(r, parameters, dual, create_graph=True, **known)
        seen = [k for k, g in enumerate(pulled) if g is not None and g.requires_grad]
        sizes = [p.numel() for p in parameters]

        def product(v: Tensor) -> Tensor:
            cut = torch.split(v, sizes)
            along = [cut[k].reshape(parameters[k].shape).to(parameters[k]) for k in seen]
            (found,) = torch.autograd.grad([pulled[k] for k in seen], dual, along, **known)
            return torch.zeros_like(dual) if found is None else found

        def transposed(u: Tensor) -> Tensor:
            parts_ = torch.autograd.grad(r, parameters, u.to(r), **known)
            return flat(parts_, parameters).to(r)

        return System(r.detach(), product, transposed)

    def _vectors(self, part: Given) -> list[Tensor]:
        """The part's tensors as vectors whose ``1/2 |r|^2`` is their loss; with a graph."""
        if isinstance(part, PointResiduals):
            tensors = checked([part.of(self.model, self.dtype)])
        else:
            tensors = evaluated(part)
        return [
            scaled(r if self.dtype is None else r.to(self.dtype), self.reduction) for r in tensors
        ]

    def _bytes(
        self, given: Sequence[tuple[Given, list[Tensor] | None]], parameters: Sequence[Tensor]
    ) -> int:
        rows = 0
        for part, vectors in given:
            if vectors is not None:
                rows += sum(len(r) for r in vectors)
            else:
                assert isinstance(part, PointResiduals)
                rows += len(part) * self._outputs(part)
        return (
            rows
            * sum(p.numel() for p in parameters)
            * torch.finfo(self._dtype(parameters)).bits
            // 8
        )

    def _outputs(self, part: PointResiduals) -> int:
        """Residuals at one point."""
        one = PointResiduals(part.fn, *(x[:1] for x in part.points))
        with torch.no_grad():
            return checked([one.of(self.model)])[0].numel()

    def _dtype(self, parameters: Sequence[Tensor]) -> torch.dtype:
        return self.dtype or parameters[0].dtype

    def _rows(
        self, part: Given, vectors: list[Tensor] | None, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, Tensor]:
        chunk = self.chunk or rows_at_once(parameters, self._dtype(parameters), CHUNK_BYTES)
        if isinstance(part, PointResiduals):
            r, J = by_points(part, self.model, parameters, chunk, self.dtype)
            checked([r])
            if not bool(J.any()):
                _check_depends(part.of(self.model))
            root = r.numel() ** 0.5 if self.reduction == "mean" else 1.0
            return r.flatten() / root, J.div_(root)
        assert vectors is not None
        r = torch.cat(vectors)
        _check_depends(r)
        found = self._columns(part, r, parameters, chunk)
        J = by_rows(r, parameters, chunk) if found is None else found
        return r.detach(), J.to(r)

    def _columns(
        self,
        part: Callable[[], object],
        r: Tensor,
        parameters: Sequence[nn.Parameter],
        chunk: int,
    ) -> Tensor | None:
        """By forward mode, where it is the shorter way and says the same as reverse mode."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        own = [names.get(id(p)) for p in parameters]
        P = sum(p.numel() for p in parameters)
        if len(r) <= P or None in own:
            return None
        columns = max(1, chunk * P // len(r)) if self.chunk is None else chunk
        call = partial(self._joined, part)
        J = by_columns(call, self.model, [name for name in own if name is not None], columns)
        if J is None or J.shape != (len(r), P):
            return None
        # a function that keeps tensors of its own does not see the parameters replaced
        known = {"retain_graph": True, "allow_unused": True}
        g = flat(torch.autograd.grad(r, parameters, r.detach(), **known), parameters)
        away = (J.mT.to(g) @ r.detach().to(g) - g).norm()
        bound = torch.finfo(g.dtype).eps ** 0.5 * (J.norm() * r.detach().norm()).to(g)
        return J if bool(away <= bound) else None

    def _joined(self, part: Callable[[], object]) -> Tensor:
        return torch.cat(self._vectors(part))


def _is_points(part: Given) -> bool:
    return isinstance(part, PointResiduals)


def _check_depends(r: Tensor) -> None:
    if not r.requires_grad:
        raise ValueError(
            "natgrad: the residuals do not depend on the parameters of the model: compute them "
            "from its output, without detach() or no_grad()"
        )
