"""Batches of model inputs: one tensor, a tuple or mapping of tensors, or many of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Batches", "Inputs", "Targets", "call"]

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | Iterable[Any]
Targets: TypeAlias = Tensor | Iterable[Tensor] | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Batches:
    """Model inputs with their targets, if any, batch by batch; can be gone through again.

    Args:
        inputs: a tensor, a tuple or a mapping of tensors is one batch, passed on as the model
            takes it; a list or any other iterable holds several.
        targets: like ``inputs``, or a function that picks them from a batch.
        batch_to_input: picks the model's input from a batch that holds more.
    """

    inputs: Inputs
    targets: Targets = None
    batch_to_input: Callable[[Any], Any] | None = None

    def refuse_one_shot(self, why: str) -> None:
        """Raise if the batches can be gone through only once.

        Raises:
            ValueError: ``inputs`` (or ``targets``) is a one-shot iterator.
        """
        for name, given in (("inputs", self.inputs), ("targets", self.targets)):
            if isinstance(given, Iterator):
                raise ValueError(
                    f"{name} is a one-shot iterator, but {why} goes through the data twice; give "
                    "a list, a DataLoader or another iterable that can be started again"
                )

    def __iter__(self) -> Iterator[tuple[Any, Tensor | None]]:
        """Pairs of a model input and its targets."""
        if isinstance(self.inputs, (Tensor, tuple, Mapping)):
            batches: Iterable[Any] = [self.inputs]
        else:
            batches = self.inputs
        if self.targets is None or callable(self.targets):
            targets: Iterator[Any] | None = None
        else:
            single = isinstance(self.targets, Tensor)
            targets = iter([self.targets] if single else self.targets)
        for batch in batches:
            given = batch if self.batch_to_input is None else self.batch_to_input(batch)
            yield given, self.targets(batch) if callable(self.targets) else _next(targets)


def _next(targets: Iterator[Any] | None) -> Tensor | None:
    if targets is None:
        return None
    target = next(targets, None)
    if not isinstance(target, Tensor):
        raise ValueError("targets ran out before inputs: give one tensor of targets per batch")
    return target


def call(model: nn.Module, given: Any) -> Any:
    """The model's output for one batch: a tuple as positional, a mapping as keyword arguments."""
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)
