"""Natural gradients straight from the rows, without forming the plain gradient first.

The gradient of a layer is ``g^T a``, so ``G^-1 (g^T a) A^-1 = (g G^-1)^T (a A^-1)``: with fewer
rows than the layer is wide this is the cheaper order, and it takes the place of the weight
gradient's own matrix product. While a layer's forward runs, its parameters do not require
gradients; when the user's backward pass reaches the layer's output, the natural gradient is added
to ``.grad``.

Layers that are no modules of their own (the projections of attention) are not fused, nor are
convolutions (:mod:`natgrad.listening`), whose rows are many and dear to unfold: their gradients are
preconditioned in the step, as without fusing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natgrad.calls import whole
from natgrad.hooks import Hook, Listener
from natgrad.layers import LayerView
from natgrad.layers.attention import ProjectionView
from natgrad.sample import Sample, statistics_dtype

__all__ = ["FusedGradients"]


class FusedGradients(Listener):
    """Hooks that replace the weight gradient of each layer by what ``solve`` makes of its rows.

    Every backward pass through the model is taken for one of the loss, unless ``ignored`` says
    otherwise at the time.

    Args:
        views: the layers.
        wanted: whether the layer of this index is to be fused now; must not change between two
            steps.
        ignored: whether the backward pass now running is none of the user's.
        solve: turns a layer's index and its rows, those of the user's own gradient, into the
            matrix ``[(q,) o, i]`` to add to ``.grad``.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        *,
        wanted: Callable[[int], bool],
        ignored: Callable[[], bool],
        solve: Callable[[int, Sample], Tensor],
    ) -> None:
        self.wanted, self.ignored, self.solve = wanted, ignored, solve
        self._frozen: dict[int, list[nn.Parameter]] = {}
        super().__init__(views)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_frozen": {}}

    def attach(self) -> Iterator[RemovableHandle]:
        """Listen to each layer's forward pass, before and after."""
        for index, view in enumerate(self.views):
            modules = [] if isinstance(view, ProjectionView) else [view, *view.twins]
            for each in modules:
                yield each.module.register_forward_pre_hook(Hook(partial(self._freeze, index)))
                yield each.module.register_forward_hook(
                    Hook(partial(self._thaw, index, each)), with_kwargs=True, always_call=True
                )

    def _freeze(self, index: int, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and self.wanted(index):
            parameters = list(self.views[index].parameters().values())
            for p in parameters:
                p.requires_grad_(False)
            self._frozen[index] = parameters

    def _thaw(
        self, index: int, view: LayerView, module: nn.Module, args: Any, kwargs: Any,
        output: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        parameters = self._frozen.pop(index, None)
        if parameters is None:
            return None
        for p in parameters:
            p.requires_grad_(True)
        if output is None:  # forward raised
            return None
        if not output.requires_grad:  # a clone, for a leaf could not be changed in place later
            output = output.requires_grad_(True).clone()
        h = args[0] if args else next(iter(kwargs.values()))
        hook = partial(self._arrived, index, view, parameters, h.detach(), output.shape)
        whole(output).register_hook(hook)  # type: ignore[no-untyped-call]
        return output

    @torch.no_grad()
    def _arrived(
        self, index: int, view: LayerView, parameters: list[nn.Parameter], h: Tensor,
        shape: torch.Size, grad: Tensor,
    ) -> None:  # fmt: skip
        if self.ignored():
            return
        dtype = statistics_dtype(parameters[0].dtype)
        g = view.output_rows(grad.reshape(shape)).unsqueeze(-4)
        sample = Sample(view.input_rows(h), g).to(dtype)
        view.add_grad(self.solve(index, sample))
