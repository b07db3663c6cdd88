"""``nn.MultiheadAttention``: its four projections, one view each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import EllipsisType
from typing import Any

from torch import Tensor, nn

from natgrad.layers.base import LayerView, Slot
from natgrad.layers.dense import DenseView

__all__ = ["ProjectionView"]


class ProjectionView(DenseView):
    """The projection of queries, keys or values, or of the output: a Linear without a module.

    All four are calls of :func:`torch.nn.functional.linear` inside the attention's forward (hooks
    on ``out_proj`` never fire), known by the weight they are given. Queries, keys and values of a
    packed ``in_proj_weight [3 E, E]`` have a third of its rows and a block of their own each,
    though self-attention computes all three in one call.

    Args:
        name: name of the attention and the projection.
        module: the attention.
        weight: the weight's name in the module.
        bias: the bias's name in the module.
        part: which third it has of a parameter that three projections share.
    """

    module: nn.MultiheadAttention
    kinds = (nn.MultiheadAttention,)
    inner = ("out_proj",)

    def __init__(
        self, name: str, module: nn.MultiheadAttention, weight: str, bias: str, part: int = 0
    ) -> None:
        super().__init__(name, module)
        self.weight, self.bias, self.part = weight, bias, part

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """A forward of its own."""
        return cls.overridden(module)

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Sequence[LayerView]:
        """Queries, keys, values and output, those whose weights are trained."""
        assert isinstance(module, nn.MultiheadAttention)
        prefix = f"{name}." if name else ""
        packed = module.in_proj_weight is not None
        views = [
            cls(
                f"{prefix}{letter}", module,
                "in_proj_weight" if packed else f"{letter}_proj_weight", "in_proj_bias", part,
            )
            for part, letter in enumerate("qkv")
        ]  # fmt: skip
        views.append(cls(f"{prefix}out_proj", module, "out_proj.weight", "out_proj.bias"))
        return [view for view in views if _trained(attrgetter(view.weight)(module))]

    def slot(self, name: str) -> Slot:
        """All of a parameter, or a third of one that is three times as long."""
        E, parameter = self.module.embed_dim, attrgetter(name)(self.module)
        if len(parameter) == E:
            return Slot(parameter)
        return Slot(parameter, self.part * E, (self.part + 1) * E)

    @property
    def shape(self) -> tuple[int, int]:
        """``(E, features + 1)``, without the 1 if there is no trainable bias."""
        weight = self.slot(self.weight).parameter
        return self.module.embed_dim, weight.shape[1] + self.has_bias

    # inside the attention's forward -------------------------------------------------------------

    def examples(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """The batch size, told from the arguments of the attention's forward."""
        query = args[0] if args else kwargs["query"]
        return 1 if query.ndim == 2 else int(query.shape[0 if self.module.batch_first else 1])

    def columns(self, weight: Tensor) -> slice | None:
        """Which outputs of a linear call with ``weight`` are this map's; None if none are."""
        slot = self.slot(self.weight)
        whole = weight if weight._base is None else weight._base
        if whole is not slot.parameter:
            return None
        first = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0)
        start, stop = slot.start - first, (slot.stop or len(whole)) - first
        return slice(start, stop) if start >= 0 and stop <= len(weight) else None

    @staticmethod
    def by_example(n: int, columns: slice | EllipsisType, z: Tensor) -> Tensor:
        """Columns of ``[t, n, k]`` or ``[t n, k]``, as the calls see it, as ``[n, t, k]``."""
        return z.reshape(-1, n, z.shape[-1]).transpose(0, 1)[..., columns]


def _trained(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad
