"""A word of warning where decompositions outweigh the training that they are for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import ceil, floor, log10

from natgrad.curvature import Layer
from natgrad.flops import Kind, Rows, Work, model_flops

__all__ = ["LARGE", "SILLY", "SLOWER", "remark_on_pace", "remarked"]

SILLY = 3.0  #: decompositions that take so many times the model's own passes, in the average step
LARGE = 1e11  #: flop of one decomposition below which nothing is said: models that are small
#: how much slower than products, per flop: measured on a CPU core, assumed on accelerators
SLOWER: dict[bool, dict[Kind, float]] = {
    False: {"eigh": 2.0, "inverse": 3.0},
    True: {"eigh": 30.0, "inverse": 4.0},
}


def remark_on_pace(layers: Sequence[Layer], refresh_every: int) -> bool:
    """Warn if :func:`remarked` has something to say; returns whether it had."""
    message = remarked(layers, refresh_every)
    if message is not None:
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    return message is not None


def remarked(layers: Sequence[Layer], refresh_every: int) -> str | None:
    """What is wrong with a schedule whose decompositions outweigh the model's own passes.

    By counted flops, weighted by how much slower than products decompositions run
    (:data:`SLOWER`). Nothing is said where no single factor is large.

    Args:
        layers: with the rows of a batch that they have seen.
        refresh_every: steps between decompositions.
    """
    works = [
        (layer, work, _weight(layer, work))
        for layer in layers
        for work in layer.block.cost(layer.rows or Rows()).decomposition
        if work.kind in SLOWER[False]
    ]
    if not works or max(work.flops / work.calls for _, work, _ in works) < LARGE:
        return None
    passes = sum(
        model_flops(*layer.view.shape, layer.rows or Rows()) * layer.block.count for layer in layers
    )
    ratio = sum(weight for *_, weight in works) / passes
    if ratio / refresh_every <= SILLY:
        return None
    layer, work, _ = max(works, key=lambda found: found[2])
    return (
        f"natgrad: with refresh_every={refresh_every} decompositions take about "
        f"{_rounded(ratio / refresh_every)} times as long as the model's own forward and backward "
        f"passes of a batch like the last one, most of all {_named(layer, work)}. "
        f"{_advice(work, ratio)}; report() shows every layer's share"
    )


def _weight(layer: Layer, work: Work) -> float:
    """Flops of products that would take as long."""
    accelerated = layer.block.ready.device.type not in ("cpu", "meta")
    return SLOWER[accelerated][work.kind] * work.flops


def _named(layer: Layer, work: Work) -> str:
    o, i = layer.view.shape
    width = round(work.size)
    factor = "A" if width == i else "G" if width == o else "F"
    what = "eigendecomposition" if work.kind == "eigh" else "inverse"
    kind = type(layer.block).__name__
    return f"the {what} of the {width}-wide factor {factor} of layer {layer.view.name!r} ({kind})"


def _advice(work: Work, ratio: float) -> str:
    """The setting at which decompositions take as long as the model's passes."""
    wanted = max(2, ceil(_rounded(ratio)))
    advice = f"Take refresh_every={wanted} or more, or larger batches"
    if work.kind == "eigh":
        advice += "; or KFAC or TKFAC, whose Cholesky inverses cost a fraction of it"
    return advice


def _rounded(x: float) -> float:
    """To two digits."""
    digits = 1 - floor(log10(x))
    return round(x, digits) if digits > 0 else int(round(x, digits))
