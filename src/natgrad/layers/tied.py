"""Parameters in several places: one view where that is exact, else none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from natgrad.layers.base import LayerView, Uncovered

__all__ = ["untied"]


@dataclass(frozen=True, eq=False)
class _Claim:
    """A view or an uncovered module that has some rows of a parameter."""

    entry: LayerView | Uncovered
    name: str  #: of the parameter in the module
    start: int = 0
    stop: int | None = None

    def overlaps(self, other: _Claim) -> bool:
        below = self.stop is None or other.start < self.stop
        return below and (other.stop is None or self.start < other.stop)


def untied(
    views: Sequence[LayerView], uncovered: Sequence[Uncovered]
) -> tuple[list[LayerView], list[Uncovered]]:
    """Views that share no parameter with another, and those that do, with the reason.

    Views of the same kind whose matrices are the very same parameters become one with ``twins``:
    the per-example gradient is the sum over all uses, so each is one more set of positions.
    Anything else shared (an embedding and the output layer: one reads the transpose of the other;
    a weight with two biases) has no one matrix, and so no block.
    """
    merged: dict[Any, LayerView] = {}
    for view in views:
        first = merged.setdefault(_identity(view), view)
        if first is not view:
            first.twins.append(view)
    claims = _claims(list(merged.values()), uncovered)
    covered: list[LayerView] = []
    tied: list[Uncovered] = []
    for view in merged.values():
        others = _others(view, claims)
        if not others:
            covered.append(view)
            continue
        reason = _reason(view, others)
        tied += [Uncovered(each.name, each.module, reason) for each in (view, *view.twins)]
    return covered, tied


def _identity(view: LayerView) -> tuple[Any, ...]:
    """Equal for views of one kind on the same parameters."""
    slots = ((id(s.parameter), s.start, s.stop) for s in view.slots().values())
    return type(view), view.matrix_shape, *slots


def _claims(
    views: Sequence[LayerView], uncovered: Sequence[Uncovered]
) -> dict[nn.Parameter, list[_Claim]]:
    claims: dict[nn.Parameter, list[_Claim]] = {}
    covered: set[tuple[nn.Module, str]] = set()
    for view in views:
        for name, slot in view.slots().items():
            claim = _Claim(view, name, slot.start, slot.stop)
            claims.setdefault(slot.parameter, []).append(claim)
            covered.update((each.module, name) for each in (view, *view.twins))
    for left in uncovered:
        for name, p in left.module.named_parameters(recurse=False):
            if (left.module, name) not in covered:
                claims.setdefault(p, []).append(_Claim(left, name))
    return claims


def _others(
    view: LayerView, claims: dict[nn.Parameter, list[_Claim]]
) -> list[tuple[str, LayerView | Uncovered]]:
    """Parameters of ``view`` that are claimed elsewhere, and by whom."""
    found = []
    for name, slot in view.slots().items():
        mine = _Claim(view, name, slot.start, slot.stop)
        listed = claims[slot.parameter]
        found += [(name, c.entry) for c in listed if c.entry is not view and c.overlaps(mine)]
    return found


def _reason(view: LayerView, others: list[tuple[str, LayerView | Uncovered]]) -> str:
    name, other = others[0]
    shared = f"shares {name} with {other.name}"
    if isinstance(other, Uncovered):
        return f"{shared}, which is not covered: {other.reason}"
    if type(other) is not type(view) or other.matrix_shape != view.matrix_shape:
        return f"{shared}, which reads it as another matrix"
    apart = [key for key in view.slots() if key not in {key for key, _ in others}]
    return f"{shared}, but not {', '.join(apart) or 'all of its matrix'}"
