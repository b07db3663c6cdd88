"""Whether a checkpoint is of this model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["check_momentum", "check_parameters", "shapes_of"]


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """The shape of every parameter, by name."""
    return {name: list(p.shape) for name, p in model.named_parameters()}


def check_parameters(saved: Mapping[str, Sequence[int]], model: nn.Module) -> None:
    """Raise unless the model has the saved names and shapes.

    Raises:
        RuntimeError: names the first parameter that differs.
    """
    here = shapes_of(model)
    for name in [*saved, *here]:
        there, own = (list(x[name]) if name in x else "no such parameter" for x in (saved, here))
        if there != own:
            raise RuntimeError(
                f"natgrad: the checkpoint is of another model: parameter {name!r} is {there} "
                f"there, {own} here"
            )


def check_momentum(
    state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], model: nn.Module
) -> None:
    """Raise unless every saved buffer of an optimizer has its parameter's shape.

    Raises:
        RuntimeError: names the parameter.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = [p for group in groups for p in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    for index, p in zip(saved, parameters, strict=False):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape != p.shape:
                raise RuntimeError(
                    f"natgrad: the checkpoint is of another model: {key} of parameter "
                    f"{names.get(id(p), index)!r} is {list(value.shape)} there, its weight "
                    f"{list(p.shape)} here"
                )
