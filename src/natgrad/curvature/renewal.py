"""New decompositions for layers: some layers at a time, and what happens where one fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from natgrad.curvature.layer import Layer
from natgrad.decompose import decompose_each, described

__all__ = ["DECOMPOSED_BYTES", "FAILURES_ALLOWED", "in_parts", "renew"]

FAILURES_ALLOWED = 3  #: failed decompositions of a layer in a row, before it is an error
DECOMPOSED_BYTES = 2**27  #: factors decomposed together; those of one layer at least


def in_parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers whose factors are decomposed together, of which several copies exist meanwhile."""
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = sum(moment.value.nbytes for moment in layer.block.basis_moments())
        if part and held + size > DECOMPOSED_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def renew(layers: Sequence[Layer]) -> None:
    """Decompose their factors, equal shapes stacked; a layer keeps its last where that fails.

    Raises:
        RuntimeError: a layer failed too often in a row.
    """
    found = decompose_each([layer.block.factors() for layer in layers])
    for layer, results in zip(layers, found, strict=True):
        good = {name: result for name, result in results.items() if result is not None}
        if len(good) == len(results):
            layer.block.load(good)
            layer.failures = 0
        else:
            _failed(layer, sorted(set(results) - set(good)))


def _failed(layer: Layer, names: list[str]) -> None:
    layer.failures += 1
    factors = layer.block.factors()
    kept = "the last good one stays" if layer.block.is_ready else "its gradient stays plain"
    listed = "; ".join(f"{name} {described(factors[name])}" for name in names)
    message = (
        f"natgrad: decomposition failed for layer {layer.view.name!r}, factor {listed}, in float64 "
        f"too ({layer.failures} in a row); {kept}. Raise the damping, or look for huge or "
        "constant activations in this layer"
    )
    if layer.failures >= FAILURES_ALLOWED:
        raise RuntimeError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=7)
