"""No step on what is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from natgrad import distributed
from natgrad.sample import statistics_dtype

__all__ = ["Guard", "finite_or_not", "look", "no_gradients", "not_finite", "zero_unless_"]

SKIPS_UNREMARKED = 10  #: steps skipped in a row, before a warning


class Guard:
    """Counts the steps that were not taken, and says so when there are many.

    Args:
        nonfinite: ``"skip"`` and ``"zero"`` let the loop go on, ``"raise"`` does not.
    """

    def __init__(self, nonfinite: Literal["skip", "raise", "zero"]) -> None:
        self.nonfinite = nonfinite
        self.skipped = 0  #: in all
        self.in_a_row = 0

    def passed(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def skip(self, names: Callable[[], str], drop: Callable[[], None]) -> None:
        """A step is not taken.

        Args:
            names: says what is not finite.
            drop: drops it.

        Raises:
            FloatingPointError: with ``"raise"``, after dropping.
        """
        found = names() if self.nonfinite == "raise" else ""
        drop()
        self.skipped += 1
        self.in_a_row += 1
        if self.nonfinite == "raise":
            raise FloatingPointError(f"natgrad: step not taken, not finite: {found}")
        if self.in_a_row == SKIPS_UNREMARKED:
            warnings.warn(
                f"natgrad: {SKIPS_UNREMARKED} steps in a row were skipped, because gradients or "
                "statistics were not finite; nonfinite='raise' names them",
                RuntimeWarning,
                stacklevel=4,
            )


def no_gradients(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients were dropped, or set to zero, since the last backward pass."""
    return not any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def not_finite(model: nn.Module, waiting: Iterable[tuple[str, Tensor]]) -> str:
    """The names of gradients and of layers' statistics that are not finite."""
    named = [(f"gradient of {n}", p.grad) for n, p in model.named_parameters()]
    named += [(f"statistics of layer {n!r}", x) for n, x in waiting]
    bad = [n for n, x in named if x is not None and not bool(torch.isfinite(x).all())]
    return ", ".join(dict.fromkeys(bad)) or "in another process"


def zero_unless_(finite: Tensor, tensors: Iterable[Tensor]) -> None:
    """Zero everywhere if not ``finite``, without a look at the device."""
    for x in tensors:
        x.masked_fill_(~finite.to(x.device), 0)


def look(tensors: Sequence[Tensor], claims: Sequence[Tensor]) -> tuple[bool, list[bool]]:
    """Whether every tensor is finite, in every process, and which of the booleans are true.

    Both in one look, for on an accelerator a look waits until everything before is computed.
    """
    finite = finite_or_not(tensors)
    on_device = claims if finite is None else [finite, *claims]
    if len({x.device for x in on_device}) > 1:
        on_device = [x.to("cpu") for x in on_device]
    seen: list[bool] = torch.stack(list(on_device)).tolist() if on_device else []
    if finite is None:
        return distributed.everywhere(True), seen
    return distributed.everywhere(seen[0]), seen[1:]


def finite_or_not(tensors: Sequence[Tensor]) -> Tensor | None:
    """Whether every tensor is finite, still on its device; None if there are none."""
    if not tensors:
        return None
    # a norm is not finite if any entry is not; half precision would overflow in the sum
    norms = torch._foreach_norm([x.to(statistics_dtype(x.dtype)) for x in tensors])
    if len({norm.device for norm in norms}) > 1:
        norms = tuple(norm.to("cpu") for norm in norms)
    return torch.isfinite(torch.stack(list(norms))).all()
