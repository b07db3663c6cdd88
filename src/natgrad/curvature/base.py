"""What the preconditioner asks of a model's curvature."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from natgrad.layers import LayerView
from natgrad.retained import Explained
from natgrad.sample import Sample
from natgrad.schedule import EVERY

__all__ = ["NO_STATISTICS", "Curvature", "RowsOf", "Solved"]

RowsOf: TypeAlias = Callable[[int], Explained | None]

NO_STATISTICS = (
    "natgrad has no statistics: between steps, call the model itself (not its parts) "
    "in training mode with gradients enabled, and run backward() through its output "
    "(a model that torch.compile has run before its optimizer was made: make the "
    "optimizer first, or call torch.compiler.reset())"
)


class Solved(NamedTuple):
    """One layer's gradient and natural gradient, as matrices ``[(q,) o, i]``."""

    view: LayerView
    M: Tensor | None  #: None where a fused layer never formed it
    U: Tensor

    def apart(self) -> Solved:
        """The same, ``M`` in memory of its own; of a layer without bias it may be ``.grad``."""
        grads = (p.grad for p in self.view.parameters().values())
        places = {grad.untyped_storage().data_ptr() for grad in grads if grad is not None}
        if self.M is None or self.M.untyped_storage().data_ptr() not in places:
            return self
        return self._replace(M=self.M.clone())


class Curvature(Protocol):
    """Observes samples during backward passes, and turns gradients into natural ones in a step."""

    def choose(self, views: Sequence[LayerView]) -> None:
        """Work on these layers from now on; what is known of others is kept for later."""

    def observe(self, index: int, sample: Sample, number: int, refreshing: bool) -> None:
        """A layer's sample of one pass waits for the step.

        Args:
            index: of the layer's view.
            sample: paired rows.
            number: of the forward pass.
            refreshing: whether the coming step decomposes the layer anew.
        """

    def waiting(self) -> Iterable[tuple[str, Tensor]]:
        """What waits to enter the statistics, with the layer's name."""

    def discard(self) -> None:
        """Drop what waits."""

    def commit(self, loss_scale: float, due: Collection[int]) -> None:
        """Let what waits enter the statistics.

        Args:
            loss_scale: what the user's loss was multiplied by for its backward pass.
            due: the layers that :meth:`refresh` will then decompose, by index.
        """

    def refresh(self, due: Collection[int] = EVERY) -> None:
        """Decompose these layers anew."""

    def solve(self, rows: RowsOf | None = None) -> list[Solved]:
        """The natural gradient of every layer that has one.

        Args:
            rows: told a layer's index, gives its gradient with the rows that this is made of, if
                they are known.
        """

    def quadratic(self, directions: Sequence[tuple[LayerView, Tensor]]) -> Tensor:
        """``<delta, F delta>`` without damping, for a direction of every layer."""

    def figures(self) -> dict[str, float]:
        """Live figures by name."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise if the state does not fit, before anything is changed."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
