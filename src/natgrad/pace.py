"""A word of warning where decompositions or emulated products outweigh the training itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import ceil, floor, log10

import torch

from natgrad.blocks import EigenCorrected, TwoFactor
from natgrad.curvature import Layer
from natgrad.flops import Kind, Rows, Work, model_flops

__all__ = ["LARGE", "SILLY", "SLOWER", "emulated", "natively", "remark_on_pace", "remarked"]

SILLY = 3.0  #: decompositions that take so many times the model's own passes, in the average step
LARGE = 1e11  #: flop of one decomposition below which nothing is said: models that are small
LARGE_SOLVE = 1e8  #: flop of one layer's solve, likewise
WIDEST, NARROWEST = 13, 7  #: powers of two that are advised as ``widest``
WHAT = {
    "eigh": "eigendecomposition",
    "warm": "orthogonal iteration",
    "inverse": "inverse",
}
#: how much slower than products, per flop: measured on a CPU core, assumed on accelerators
SLOWER: dict[bool, dict[Kind, float]] = {
    False: {"eigh": 2.0, "warm": 2.5, "inverse": 3.0},
    True: {"eigh": 30.0, "warm": 5.0, "inverse": 4.0},
}


def remark_on_pace(layers: Sequence[Layer], refresh_every: int) -> bool:
    """Warn of what :func:`remarked` and :func:`emulated` have to say; whether it was anything."""
    messages = [m for m in (remarked(layers, refresh_every), emulated(layers)) if m is not None]
    for message in messages:
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    return bool(messages)


def emulated(layers: Sequence[Layer]) -> str | None:
    """What is wrong with large products in a dtype that the processor has no instructions for.

    torch then converts or emulates: on a CPU with AVX2 alone products of 1000-matrices in bfloat16
    took thirty times as long as in float32.
    """
    for layer in layers:
        dtype, (o, i) = layer.block.product_dtype, layer.view.shape
        small = 2 * o * i * (o + i) < LARGE_SOLVE
        if dtype is None or layer.block.ready.device.type != "cpu" or small:
            continue
        if not natively(dtype):
            return (
                f"natgrad: product_dtype={dtype} on a processor without instructions for it, where "
                "products take many times as long as in float32; leave product_dtype out"
            )
    return None


def natively(dtype: torch.dtype) -> bool:
    """Whether this machine's processor multiplies matrices of that dtype itself."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True  # other libraries multiply, and nothing is known of them
    known = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype not in known or bool(known[dtype]())


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
    own = sum(
        model_flops(*layer.view.shape, layer.rows or Rows()) * layer.block.count for layer in layers
    )
    ratio = sum(weight for *_, weight in works) / own
    if ratio / refresh_every <= SILLY:
        return None
    layer, work, _ = max(works, key=lambda found: found[2])
    advice = _advice(work, ratio, _widest(works, own * refresh_every))
    return (
        f"natgrad: with refresh_every={refresh_every} decompositions take about "
        f"{_rounded(ratio / refresh_every)} times as long as the model's own forward and backward "
        f"passes of a batch like the last one, most of all {_named(layer, work)}. "
        f"{advice}; report() shows every layer's share"
    )


def _weight(layer: Layer, work: Work) -> float:
    """Flops of products that would take as long."""
    accelerated = layer.block.ready.device.type not in ("cpu", "meta")
    return SLOWER[accelerated][work.kind] * work.flops


def _named(layer: Layer, work: Work) -> str:
    width, kind = round(work.size), type(layer.block).__name__
    what, each = WHAT[work.kind], f"of layer {layer.view.name!r} ({kind})"
    if width not in layer.view.shape and _splits(layer):
        return f"the {what} of the {width}-wide blocks on the diagonal of a factor {each}"
    o, i = layer.view.shape
    factor = "A" if width == i else "G" if width == o else "F"
    return f"the {what} of the {width}-wide factor {factor} {each}"


def _widest(works: Sequence[tuple[Layer, Work, float]], bound: float) -> int | None:
    """The power of two to split factors at for ``bound`` in all; None where blocks get narrow."""
    for exponent in range(WIDEST, NARROWEST - 1, -1):
        split = (
            weight * min(1, 2**exponent / work.size) ** 2 if _splits(layer) else weight
            for layer, work, weight in works
        )
        if sum(split) <= bound:
            return int(2**exponent)
    return None


def _splits(layer: Layer) -> bool:
    return isinstance(layer.block, (TwoFactor, EigenCorrected))


def _advice(work: Work, ratio: float, widest: int | None) -> str:
    """The settings at which decompositions take as long as the model's passes."""
    wanted = max(2, ceil(_rounded(ratio)))
    advice = f"Take refresh_every={wanted} or more, or larger batches"
    if widest is not None:
        advice += f"; or widest={widest} or less, which splits wider factors into blocks"
    if work.kind != "inverse":
        advice += "; or KFAC or TKFAC, whose Cholesky inverses cost a fraction of it"
    return advice


def _rounded(x: float) -> float:
    """To two digits."""
    digits = 1 - floor(log10(x))
    return round(x, digits) if digits > 0 else int(round(x, digits))
