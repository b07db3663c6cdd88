"""The exact Fisher matrix of all layers together, of the current batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.curvature.base import NO_STATISTICS, RowsOf, Solved
from natgrad.curvature.layer import Accumulated, key_of
from natgrad.damping import Constant, Damping, EigenvalueDamping, on_eigenvalues
from natgrad.flops import EIGH, Rows
from natgrad.layers import LayerView
from natgrad.linalg import Eigen
from natgrad.sample import Sample, statistics_dtype
from natgrad.schedule import EVERY

__all__ = ["LIMIT_BYTES", "Joint"]

LIMIT_BYTES = 2**31  #: per-example gradients of all layers, 2 GiB


class Joint:
    """``U = (F + damping I)^-1 M`` with ``F [P, P]`` over all covered parameters (MATH 0.2).

    ``F = J^T J / n`` with ``J [R, P]`` the gradients of ``n`` examples, ``R`` of them in all with
    the columns of the exact Fisher or the draws of the sampled one. Nothing is averaged over
    batches, and everything is solved in float64. With ``P <= R`` the matrix is written out, else
    the Woodbury identity is used (V:A9), or, where the damping would drown in rounding, the
    singular vectors of ``J``: components of the gradient outside of the range of ``F`` that are no
    more than its rounding are then dropped instead of divided by the damping, and without damping
    it is the pseudo-inverse.

    Args:
        damping: a number or a damping object, added to the eigenvalues of ``F``.
        scaled_by_batch: whether the samples are of the user's own loss, a mean over examples.
        scaled_by_loss: whether the samples are of the user's own loss at all.
    """

    def __init__(
        self, *, damping: float | Damping, scaled_by_batch: bool, scaled_by_loss: bool
    ) -> None:
        found = on_eigenvalues(damping)
        plain = isinstance(found, (int, float))
        self.damping = Constant(cast(float, found)) if plain else cast(EigenvalueDamping, found)
        self.scaled_by_batch, self.scaled_by_loss = scaled_by_batch, scaled_by_loss
        self.views: Sequence[LayerView] = ()
        self.rows: dict[int, Rows] = {}  # of the last batch, by layer
        self.J: Tensor | None = None  # of the layers trained now that have gradients
        self.examples = 0
        self._parts: dict[str, Tensor] = {}  # columns of J by layer, of all layers of that batch
        self._waiting: dict[int, dict[str, Tensor]] = {}  # pass, layer: [c, n, D]
        self._loss = Accumulated()
        self._factor: dict[int, float] = {}
        self._eigen: Eigen | None = None

    def choose(self, views: Sequence[LayerView]) -> None:
        """The layers of these views; one without gradients yet stays plain until it has some."""
        self.views, self.rows = views, {}
        self._assemble()

    def _sizes(self) -> list[int]:
        return [torch.Size(view.matrix_shape).numel() for view in self.views]

    def _known(self) -> list[LayerView]:
        return [view for view in self.views if key_of(view) in self._parts]

    def _assemble(self) -> None:
        parts = [self._parts[key_of(view)] for view in self._known()]
        self.J, self._eigen = torch.cat(parts, dim=-1) if parts else None, None

    def observe(self, index: int, sample: Sample, number: int, refreshing: bool) -> None:
        """Keep the layer's per-example gradients.

        Raises:
            ValueError: they would take more than 2 GiB in all.
        """
        rows = sample.examples * sample.g.shape[-4]
        needed = rows * sum(self._sizes()) * sample.g.element_size()
        if needed > LIMIT_BYTES:
            raise ValueError(
                f"natgrad: the exact natural gradient needs {needed / 2**30:.1f} GiB for {rows} "
                f"gradients of {sum(self._sizes())} parameters, beyond 2 GiB: take smaller "
                'batches, fisher="sampled", or natgrad.TEKFAC'
            )
        if self.scaled_by_batch and number not in self._factor:
            self._factor[number] = self._loss.add(sample.examples)
        self.rows[index] = Rows(sample.examples, sample.positions, sample.g.shape[-4])
        J = torch.cat(list(sample.gradients()), dim=-3)  # [(q,) c, n, o, i]
        if J.ndim == 5:
            J = J.movedim(0, 2)
        self._waiting.setdefault(number, {})[key_of(self.views[index])] = J.flatten(2)

    def waiting(self) -> Iterable[tuple[str, Tensor]]:
        """The gradients that wait."""
        for view in self.views:
            for found in self._waiting.values():
                if key_of(view) in found:
                    yield view.name, found[key_of(view)]

    def discard(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self._factor.clear()
        self._loss.clear()

    def commit(self, loss_scale: float, due: Collection[int]) -> None:
        """The gradients of this step take the place of the last ones."""
        if not self._waiting:
            return
        factor = self._loss.factor() if self.scaled_by_batch else 1.0
        factor = factor / loss_scale if self.scaled_by_loss else factor
        passes = [
            self._joined(found) * (factor * self._factor.get(number, 1.0))
            for number, found in sorted(self._waiting.items())
        ]
        self.J = torch.cat([J.flatten(0, 1) for J in passes])
        self.examples = sum(J.shape[1] for J in passes)
        keys = [key_of(view) for view in self.views]
        self._parts = dict(zip(keys, torch.split(self.J, self._sizes(), dim=-1), strict=True))
        self.discard()

    def _joined(self, found: Mapping[str, Tensor]) -> Tensor:
        """All layers' gradients of one pass side by side; zero where a layer took no part."""
        columns, n = max(tuple(J.shape[:2]) for J in found.values())
        like = next(iter(found.values()))
        parts = []
        for view, size in zip(self.views, self._sizes(), strict=True):
            J = found.get(key_of(view), like.new_zeros(columns, n, size))
            if J.shape[:2] != (columns, n):
                raise ValueError(
                    f"natgrad: layer {view.name!r} saw {J.shape[1]} examples of a "
                    f"batch of {n}: the exact natural gradient needs the gradient of each example"
                )
            parts.append(J)
        return torch.cat(parts, dim=-1)

    def refresh(self, due: Collection[int] = EVERY) -> None:
        """Forget the last decomposition; the next solve makes its own.

        Raises:
            RuntimeError: no batch has been seen.
        """
        if self.J is None:
            raise RuntimeError(NO_STATISTICS)
        self._eigen = None

    def solve(self, rows: RowsOf | None = None) -> list[Solved]:
        """The natural gradient of all layers at once."""
        views = self._known()
        gradients = [view.grad() for view in views]
        if self.J is None or all(M is None for M in gradients):
            return []
        zeros = (self.J.new_zeros(view.matrix_shape) for view in views)
        filled = [z if M is None else M for M, z in zip(gradients, zeros, strict=True)]
        g = torch.cat([M.flatten() for M in filled]).to(self.J)
        parts = torch.split(self._natural(g).to(self.J), [M.numel() for M in filled])
        return [
            Solved(view, M, part.reshape(view.matrix_shape))
            for view, M, part in zip(views, gradients, parts, strict=True)
            if M is not None
        ]

    def ridge(self) -> Tensor | float:
        """The damping of the next solve."""
        assert self.J is not None
        return self.damping.ridge(self._trace(), self.J.shape[1])

    def _trace(self) -> Tensor:
        assert self.J is not None
        return self.J.square().sum() / self.examples

    def _natural(self, g: Tensor) -> Tensor:
        assert self.J is not None
        ridge, J = float(self.ridge()), self.J.double()
        R, P = J.shape
        heard = linalg.ridge_is_heard(ridge, float(self._trace()), J.dtype, g.dtype)
        if P > R and heard:
            U = J.mT / self.examples**0.5
            return linalg.woodbury_solve(U, ridge, g.double().unsqueeze(-1)).squeeze(-1)
        if self._eigen is None:
            self._eigen = _eigen(J, self.examples, exact=g.dtype == torch.float64)
        return _range_solve(self._eigen, g, ridge)

    def quadratic(self, directions: Sequence[tuple[LayerView, Tensor]]) -> Tensor:
        """``|J delta|^2 / n``."""
        assert self.J is not None
        given = {id(view): delta.flatten() for view, delta in directions}
        parts = [
            given.get(id(view), self.J.new_zeros(torch.Size(view.matrix_shape).numel())).to(self.J)
            for view in self._known()
        ]
        return (self.J @ torch.cat(parts)).square().sum() / self.examples

    def flops(self) -> float:
        """Of one decomposition and solve at the size of the last batch."""
        if self.J is None:
            return 0.0
        R, P = self.J.shape
        return 2 * R * P * min(R, P) + EIGH * min(R, P) ** 3

    def figures(self) -> dict[str, float]:
        """Damping, effective rank and extreme eigenvalues of the whole damped matrix."""
        if self.J is None:
            return {}
        R, P = self.J.shape
        K = (self.J @ self.J.mT if R <= P else self.J.mT @ self.J) / self.examples
        ridge, largest = float(self.ridge()), float(linalg.largest_eigenvalue(K))
        known = self._eigen if R >= P else None  # with fewer gradients than parameters it is 0
        smallest = 0.0 if known is None else float(known.values.amin())
        squared = float(K.square().sum())
        return {
            "model/damping": ridge,
            "model/effective_rank": float(self._trace()) ** 2 / squared if squared else 0.0,
            "model/eigenvalue_min": smallest + ridge,
            "model/eigenvalue_max": largest + ridge,
        }

    def state_dict(self) -> dict[str, Any]:
        """The last gradients, and those that wait, by layer."""
        return {
            "kind": "Joint",
            "J": {key: part.clone() for key, part in self._parts.items()},
            "examples": self.examples,
            "waiting": [
                (dict(found), self._factor.get(number, 1.0))
                for number, found in sorted(self._waiting.items())
            ],
            "loss": self._loss.state(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise unless it is of an exact optimizer, with gradients of the layers' sizes.

        Raises:
            RuntimeError: says what was found; names the layer.
        """
        if state["kind"] != "Joint":
            raise RuntimeError(
                f"natgrad: the checkpoint holds the curvature of {state['kind']}, this is exact"
            )
        for view, size in zip(self.views, self._sizes(), strict=True):
            for part in (state["J"], *(found for found, _ in state["waiting"])):
                found = part[key_of(view)].shape[-1] if key_of(view) in part else size
                if found != size:
                    raise RuntimeError(
                        f"natgrad: layer {view.name!r} does not fit the checkpoint: it has "
                        f"{found} parameters there and {size} here"
                    )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it, on the model's device and in its dtype."""
        self.discard()
        if not self.views:  # a model for residuals alone
            return
        weight = next(iter(self.views[0].parameters().values()))
        like = torch.empty(0, dtype=statistics_dtype(weight.dtype), device=weight.device)
        self._parts = {key: part.to(like) for key, part in state["J"].items()}
        self.examples = state["examples"]
        self._assemble()
        before = -len(state["waiting"])  # passes to come are numbered from 1
        for number, (found, factor) in enumerate(state["waiting"], before):
            self._waiting[number] = {key: J.to(like) for key, J in found.items()}
            self._factor[number] = factor
        self._loss.load(state["loss"])


def _eigen(J: Tensor, examples: int, exact: bool) -> Eigen:
    """Eigenvalues of ``J^T J / examples`` that can differ from zero, and their vectors.

    The Gram matrix squares the condition, which float64 affords where gradients are of lower
    precision; else (``exact``) the singular vectors of ``J`` are taken.
    """
    R, P = J.shape
    if P <= R:
        found, ok = linalg.eigh(J.mT @ J / examples)
        if bool(ok):
            return found
    K, ok = linalg.eigh(J @ J.mT)
    if exact or not bool(ok):
        squared, V = linalg.right_singular(J)
        return Eigen(squared / examples, V)
    assert isinstance(K.vectors, Tensor)
    seen = K.values > torch.finfo(J.dtype).eps * R * K.values.amax()  # the rest has no direction
    roots = torch.where(seen, K.values, torch.ones_like(K.values)).rsqrt() * seen
    return Eigen(K.values / examples, J.mT @ (K.vectors * roots))


def _range_solve(F: Eigen, g: Tensor, ridge: float) -> Tensor:
    """``(F + ridge)^-1 g`` by range and null space of ``F``; the pseudo-inverse without ridge.

    Where ``F`` is too small to be told from rounding, so must be ``g`` for its component to count.
    """
    assert isinstance(F.vectors, Tensor)
    V, l, eps = F.vectors, F.values, torch.finfo(g.dtype).eps
    g = g.double()
    noise = 100 * eps * g.norm()
    along = V.mT @ g
    kept = l > eps * max(V.shape) * l.amax()
    outside = g - V @ along
    if ridge > 0:
        kept = kept | (along.abs() > noise)
    inside = V @ torch.where(kept, along / (l + ridge), torch.zeros_like(l))
    return inside if ridge == 0 or bool(outside.norm() <= noise) else inside + outside / ridge
