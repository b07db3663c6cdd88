"""Hugging Face's ``Conv1D``: a Linear layer with the transposed weight (GPT-2 and its kin)."""

from __future__ import annotations

from torch import Tensor, nn

from natgrad.layers.dense import DenseView

__all__ = ["HFConv1DView"]


class HFConv1DView(DenseView):
    """``z = W^T h + b`` with ``weight [in, out]``, on ``h [n, ..., in]``.

    Known by the name and the home of its class, so that transformers is never imported.
    """

    @classmethod
    def reads(cls, module: nn.Module) -> bool:
        """``transformers.pytorch_utils.Conv1D`` and its subclasses."""
        return any(
            kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
            for kind in type(module).__mro__
        )

    @classmethod
    def overridden(cls, module: nn.Module) -> str | None:
        """A subclass with a forward of its own."""
        if "Conv1D" in type(module).forward.__qualname__.split("."):
            return None
        return f"{type(module).__name__} overrides Conv1D.forward"

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in + 1)``, without the 1 if there is no trainable bias."""
        i, o = self.slots()[self.weight].parameter.shape
        return o, i + self.has_bias

    def weight_as_matrix(self, weight: Tensor) -> Tensor:
        """``weight^T``."""
        return weight.mT

    def matrix_as_weight(self, W: Tensor) -> Tensor:
        """``W^T``."""
        return W.mT
