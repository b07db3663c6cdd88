"""Which entry of a model's output is the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["LogitsKey", "logits_of"]

LogitsKey: TypeAlias = int | str | Callable[[Any], Tensor] | None


def logits_of(output: Any, key: LogitsKey) -> Tensor:
    """The logits in a model's output.

    Args:
        output: a tensor, or a tuple, list, mapping or object that holds one.
        key: None if the output is a tensor, or has an entry named ``logits``, or holds just one
            tensor; an index, a key or attribute name; or a function of the output.

    Raises:
        TypeError: the logits can't be told from the output; says what was found.
    """
    found: Any
    if callable(key):
        found = key(output)
    elif isinstance(key, str) and not isinstance(output, Mapping):
        found = getattr(output, key, None)
    elif key is not None:
        found = output[key]
    else:
        found = _only_tensor(output)
    if isinstance(found, Tensor):
        return found
    described = sorted(output) if isinstance(output, Mapping) else type(output).__name__
    raise TypeError(
        f"natgrad can't tell which entry of the model's output ({described}) is the logits; say "
        "so with logits=: an index, a key or attribute name, or a function of the output "
        f"(logits={key!r} gave {type(found).__name__})"
    )


def _only_tensor(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        entries, named = list(output.values()), output.get("logits")
    elif isinstance(output, (tuple, list)):
        entries, named = list(output), getattr(output, "logits", None)
    else:
        return getattr(output, "logits", None)
    tensors = [entry for entry in entries if isinstance(entry, Tensor)]
    return named if named is not None else tensors[0] if len(tensors) == 1 else None
