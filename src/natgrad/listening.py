"""What a preconditioner hears of the user's backward passes, besides statistics: the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from natgrad import distributed
from natgrad.curvature import Blockwise, Curvature
from natgrad.fused import FusedGradients
from natgrad.layers import LayerView
from natgrad.retained import Explained, RetainedRows

__all__ = ["Listening"]


class Listening:
    """Rows kept for the step, or natural gradients made of them; nothing for :class:`Joint`.

    Args:
        views: the layers.
        curvature: gives the natural gradients.
        fused: whether backward passes write natural gradients.
        ignored: whether the backward pass now running is none of the user's.
        coming: whether the coming step takes statistics, and the layers that it decomposes.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        curvature: Curvature,
        *,
        fused: bool,
        ignored: Callable[[], bool],
        coming: Callable[[], tuple[bool, Collection[int]]],
    ) -> None:
        self.curvature, self.ignored, self.coming = curvature, ignored, coming
        self.retained: RetainedRows | None = None
        self.fused: FusedGradients | None = None
        if not isinstance(curvature, Blockwise):
            return
        if fused:
            self.fused = FusedGradients(
                views, wanted=self._fuses, ignored=ignored, solve=curvature.solve_rows
            )
        if distributed.world_size() == 1:  # also for steps that are not fused
            self.retained = RetainedRows(views, wanted=curvature.rows_pay, ignored=ignored)

    def watch(self, views: Sequence[LayerView]) -> None:
        """Listen to these layers from now on, and to no others."""
        for listener in (self.fused, self.retained):
            if listener is not None:
                listener.watch(views)

    def claims(self) -> dict[int, Tensor]:
        """Of layers whose gradients seem to be made of rows kept, whether they are."""
        return {} if self.retained is None else self.retained.claims()

    def settle(self, true: Collection[int]) -> None:
        """The claims of these layers hold."""
        if self.retained is not None:
            self.retained.settle(true)

    def explained(self, index: int) -> Explained | None:
        """A layer's gradient with the rows that it is made of, if that is settled."""
        return None if self.retained is None else self.retained.explained(index)

    def clear(self) -> None:
        """Let go of all rows."""
        if self.retained is not None:
            self.retained.clear()

    def _fuses(self, index: int) -> bool:
        """Whether the backward pass to come may solve with what is known of a layer."""
        assert isinstance(self.curvature, Blockwise)
        if self.ignored():  # the model is run silently
            return False
        if distributed.world_size() > 1:  # gradients are averaged before they are preconditioned
            return False
        if self.curvature.layers[index].view.kind == "convolution":  # unfolding takes far longer
            return False
        statistics, due = self.coming()
        return index not in due and self.curvature.solves_as_before(index, statistics)
