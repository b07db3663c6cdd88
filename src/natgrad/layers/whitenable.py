"""What a layer must offer to be rewritten as ``y = Q (V P (x - c) + d)``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from natgrad.layers.affine import AffineView

__all__ = ["Whitenable", "read_directly"]


class Whitenable(AffineView):
    """A view whose layer mixes ``k`` features of its input and can be run with any weight.

    The constants of whitening act on features: what a Linear layer takes, and the channels of a
    convolution, the same for all offsets ``p`` of the kernel. A grouped layer has constants for
    each of its ``q`` groups.
    """

    module: Any

    @property
    @abstractmethod
    def channels(self) -> tuple[int, int]:
        """``(o, k)``: outputs and features, of one group."""

    @property
    def channel_dim(self) -> int:
        """The dimension of outputs in what the layer returns, counted from the end."""
        return -1

    @abstractmethod
    def features(self, h: Tensor) -> Tensor:
        """The layer's input as rows ``[(q,) r, k]``: no bias column, no zeros of the padding."""

    @abstractmethod
    def by_channel(self, weight: Tensor) -> Tensor:
        """A tensor shaped like the weight as ``[(q,) o, p, k]``."""

    @abstractmethod
    def from_channel(self, W: Tensor) -> Tensor:
        """The inverse of :meth:`by_channel`."""

    @abstractmethod
    def compute(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for this weight and bias in place of its own."""

    @abstractmethod
    def examples(self, h: Tensor) -> int:
        """Number of examples in an input of the layer."""


def read_directly(model: nn.Module) -> set[nn.Module]:
    """Layers whose weights another module reads without calling them.

    In eval mode ``nn.TransformerEncoderLayer`` passes the weights of its linear layers to a fused
    kernel; they must be what the kernel takes them for.
    """
    wholes = (m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    return {layer for whole in wholes for layer in (whole.linear1, whole.linear2)}
