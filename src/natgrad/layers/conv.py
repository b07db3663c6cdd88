"""``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``: the same matrix map at every output position."""

from __future__ import annotations

from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.layers.affine import AffineView
from natgrad.layers.whitenable import Whitenable
from natgrad.patches import Patches, Window

__all__ = ["ConvView", "PatchView"]


class PatchView(AffineView):
    """What all convolutions share: the shape of the map from a patch to the channels."""

    kind = "convolution"
    module: Any

    @property
    def shape(self) -> tuple[int, int]:
        """``(C_out / q, C_in / q * prod(kernel) + 1)``, without the 1 if there is no bias."""
        conv = self.module
        fan_in = conv.in_channels // conv.groups * prod(conv.kernel_size)
        return conv.out_channels // conv.groups, fan_in + self.has_bias

    @property
    def kernel(self) -> int:  # type: ignore[override]
        """Entries of a patch in each channel."""
        return prod(self.module.kernel_size)

    @property
    def groups(self) -> tuple[int, ...]:
        """``(q,)`` if there is more than one group."""
        return (self.module.groups,) if self.module.groups > 1 else ()


class ConvView(PatchView, Whitenable):
    """``z_t = W [patch_t; 1]`` at every output position ``t``, ``W = [weight.flatten(1), b]``.

    Stride, dilation and every padding mode are in the patches ``[C_in / q, *kernel]`` (V:C21). A
    convolution in ``q`` groups is ``q`` maps side by side, each of its own channels; depthwise is
    one channel per group.
    """

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def input_rows(self, h: Tensor) -> Tensor:
        """Patches of ``h [n, C_in, *space]`` as ``[(q,) n, t, i]``."""
        return self.inputs(h).rows

    def inputs(self, h: Tensor) -> Patches:
        """The same, unfolded when the rows are asked for."""
        conv = self.module
        sides = list(conv._reversed_padding_repeated_twice)
        if conv.padding_mode != "zeros" and any(sides):
            h, sides = F.pad(h, sides, conv.padding_mode), [0] * len(sides)
        padding = tuple(zip(sides[::2], sides[1::2], strict=True))[::-1]
        window = Window(
            conv.kernel_size, conv.stride, conv.dilation, padding, conv.groups, self.has_bias
        )
        return Patches(batched(h, len(conv.kernel_size)), window)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, C_out, *space]`` as ``[(q,) n, t, C_out / q]``."""
        return channel_rows(batched(grad_z, len(self.module.kernel_size)), self.module.groups)

    def weight_as_matrix(self, weight: Tensor) -> Tensor:
        """``weight.flatten(1)``, by group."""
        return weight.flatten(1).reshape(*self.groups, self.shape[0], -1)

    def matrix_as_weight(self, W: Tensor) -> Tensor:
        """The inverse."""
        return W.reshape(self.module.weight.shape)

    @property
    def channels(self) -> tuple[int, int]:
        """``(C_out / q, C_in / q)``."""
        conv = self.module
        return conv.out_channels // conv.groups, conv.in_channels // conv.groups

    @property
    def channel_dim(self) -> int:
        """The one before those of space."""
        return -1 - len(self.module.kernel_size)

    def features(self, h: Tensor) -> Tensor:
        """Pixels of ``h [n, C_in, *space]`` as ``[(q,) n t, C_in / q]``, before the padding."""
        pixels = channel_rows(batched(h, len(self.module.kernel_size)), self.module.groups)
        return pixels.flatten(-3, -2)

    def by_channel(self, weight: Tensor) -> Tensor:
        """``weight [C_out, C_in / q, *kernel]`` as ``[(q,) C_out / q, p, C_in / q]``."""
        o, k = self.channels
        return weight.reshape(*self.groups, o, k, -1).mT

    def from_channel(self, W: Tensor) -> Tensor:
        """The inverse."""
        conv = self.module
        return W.mT.reshape(conv.out_channels, self.channels[1], *conv.kernel_size)

    def compute(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with this kernel, padded as the layer pads."""
        z: Tensor = self.module._conv_forward(h, weight, bias)
        return z

    def examples(self, h: Tensor) -> int:
        """Length of the batch; an input without one is one example."""
        return len(batched(h, len(self.module.kernel_size)))


def batched(h: Tensor, dims: int) -> Tensor:
    """``[n, C, *space]``: an input ``[C, *space]`` is one example."""
    return h.unsqueeze(0) if h.ndim == dims + 1 else h


def channel_rows(z: Tensor, q: int) -> Tensor:
    """``[n, C, *space]`` as ``[(q,) n, t, C / q]``."""
    rows = z.reshape(z.shape[0], q, z.shape[1] // q, -1).movedim(1, 0).mT
    return rows if q > 1 else rows.squeeze(0)
